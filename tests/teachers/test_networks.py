from __future__ import annotations

import os
import pickle
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.params import parse_params
from pipeline.teachers.checkpoints import read_checkpoint
from pipeline.teachers.networks import (
    build_network,
    digest_network,
    factory_digest,
    factory_file,
    load_weights,
)
from pipeline.teachers.teacher import load_teacher
from tests.conftest import FACTORY, Params, changed, load


def complaint(call: Callable[..., object], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_factory_in_a_module() -> None:
    network = build_network("torch.nn:Linear", {"in_features": 3, "out_features": 2}, "teacher")
    assert isinstance(network, nn.Linear) and network.out_features == 2


def test_a_factory_in_a_module_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mynets_of_the_user"
    package.mkdir()
    (package / "wide.py").write_text("from torch import nn\ndef make(n): return nn.Linear(n, n)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = build_network("mynets_of_the_user.wide:make", {"n": 4}, "teacher")
    assert network.in_features == 4
    assert factory_file("mynets_of_the_user.wide:make", "teacher") == package / "wide.py"


def test_a_factory_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\ndef make(n=1): return nn.Linear(n, n)\n")
    network = build_network(f"{file}:make", {"n": 5}, "student")
    assert network.in_features == 5
    assert factory_file(f"{file}:make", "student") == file


def test_a_torchvision_model() -> None:
    network = build_network("torchvision:resnet18", {"num_classes": 7}, "teacher")
    assert network(torch.zeros(1, 3, 32, 32).expand(2, -1, -1, -1)).shape == (2, 7)
    assert factory_file("torchvision:resnet18", "teacher") is None


NETWORKS = textwrap.dedent(
    """
    import functools
    import torch
    from torch import nn

    NUMBER = 3

    def make(n=1):
        return nn.Linear(n, n)

    def number():
        return 3

    def broken():
        raise ValueError("line one\\nline two")

    class Network(nn.Linear):
        def __init__(self):
            super().__init__(MARK, 1)

    partial = functools.partial(nn.Linear, MARK, 1)
    """
)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nothing", "module:factory"),
        (":make", "module:factory"),
        ("net.py:", "module:factory"),
        ("not_a_module_at_all:make", "cannot be imported"),
        ("torch.nn:Nothing", "no function 'Nothing'"),
        ("torch.nn.functional:math", "no function 'math'"),
        ("nowhere.py:make", "there is no file nowhere.py"),
        ("torchvision:resnet1", "torchvision has no model 'resnet1'"),
        ("net.py:missing", "no function 'missing'"),
        ("net.py:NUMBER", "no function 'NUMBER'"),
        ("net.py:number", "returned int, not a torch.nn.Module"),
        ("net.py:broken", "ValueError: line one"),
        ("syntax.py:make", "SyntaxError"),
    ],
)
def test_sources_that_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORKS.replace("MARK", "3"))
    Path("syntax.py").write_text("def make(:\n")
    text = complaint(build_network, source, {}, "student")
    assert said in text
    assert "student.source" in text


def test_arguments_that_the_factory_does_not_take(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORKS.replace("MARK", "3"))
    text = complaint(build_network, f"{tmp_path / 'net.py'}:make", {"depth": 3}, "teacher")
    assert "teacher.arguments" in text and "depth" in text


@pytest.mark.parametrize("factory", ["make", "Network", "partial"])
def test_the_file_of_a_factory_among_files_of_the_same_name(tmp_path: Path, factory: str) -> None:
    files = []
    for mark in ("3", "4"):
        file = tmp_path / mark / "net_with_a_twin.py"
        file.parent.mkdir()
        file.write_text(NETWORKS.replace("MARK", mark))
        files.append(file)
    for file in files:
        source = f"{file}:{factory}"
        build_network(source, {}, "teacher")
        assert factory_file(source, "teacher") == file


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_weights_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = small().state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert not same(network, small())
    load_weights(network, path, "teacher")
    assert same(network, small())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappings_come_off(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state: dict[str, Any] = {f"{prefix}{k}": v for k, v in small().state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "weights.pt")
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    load_weights(network, tmp_path / "weights.pt", "teacher")
    assert same(network, small())


def test_an_old_checkpoint_without_step_counters_fits(tmp_path: Path) -> None:
    state = {k: v for k, v in small().state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "weights.pt")
    load_weights(small(), tmp_path / "weights.pt", "teacher")


def damaged(change: str) -> dict[str, Tensor]:
    state = small().state_dict()
    if change == "missing":
        del state["0.weight"]
    elif change == "unexpected":
        state["0.extra"] = torch.zeros(1)
    elif change == "shape":
        state["0.weight"] = torch.zeros(2, 9)
    elif change == "nan":
        state["0.weight"][1, 2] = float("nan")
    else:
        state["1.running_var"][0] = float("inf")
    return dict(state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "1 keys missing (first: 0.weight), 0 unexpected"),
        ("unexpected", "0 keys missing, 1 unexpected (first: 0.extra)"),
        ("shape", "size mismatch for 0.weight"),
        ("nan", "NaN or infinite values (first: 0.weight)"),
        ("infinite", "NaN or infinite values (first: 1.running_var)"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, suffix: str, change: str, said: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(damaged(change), path)
    else:
        torch.save(damaged(change), path)
    text = complaint(load_weights, small(), path, "student")
    assert said in text
    assert "student.weights" in text


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02garbage", b"PK\x03\x04zip?"])
def test_files_that_hold_no_weights(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in complaint(read_checkpoint, tmp_path / name, "teacher")


@pytest.mark.parametrize("value", [[1, 2], 3, {"state_dict": 3}, {"weight": "text"}])
def test_a_pytorch_file_of_something_else(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "weights.pt")
    assert "not a state dict" in complaint(read_checkpoint, tmp_path / "weights.pt", "teacher")


def test_no_weights_file(tmp_path: Path) -> None:
    text = complaint(read_checkpoint, tmp_path / "weights.pt", "teacher")
    assert "teacher.weights: there is no file" in text


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_malicious_file_is_refused_and_runs_nothing(
    tmp_path: Path, writer: str, wrapped: bool
) -> None:
    marker, path = tmp_path / "owned", tmp_path / "weights.pt"
    content = (
        {"state_dict": small().state_dict(), "extra": Evil(marker)} if wrapped else Evil(marker)
    )
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    text = complaint(read_checkpoint, path, "teacher")
    assert "could run code" in text
    assert not marker.exists()
    with path.open("rb") as file:  # the file is what it claims to be
        if writer == "pickle":
            pickle.load(file)
            assert marker.exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "weights.pt")
    assert "state_dict()" in complaint(read_checkpoint, tmp_path / "weights.pt", "teacher")


def test_the_digest_of_a_network_sees_every_weight() -> None:
    digests = {digest_network(small())}
    assert digests == {digest_network(small())}
    for name in small().state_dict():
        network = small()
        network.state_dict()[name].view(-1)[0].add_(1)
        digests.add(digest_network(network))
    assert len(digests) == 1 + len(small().state_dict())


def test_the_digest_of_a_network_sees_types_and_shapes() -> None:
    class Holder(nn.Module):
        def __init__(self, tensor: Tensor) -> None:
            super().__init__()
            self.register_buffer("tensor", tensor)

    tensors = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32)]
    assert len({digest_network(Holder(tensor)) for tensor in tensors}) == 3


def test_the_digest_of_a_teacher_follows_all_that_it_computes(tiny: Params, tmp_path: Path) -> None:
    def digest(params: Params) -> str:
        return load_teacher(parse_params(params).teacher, torch.device("cpu")).digest

    plain = digest(tiny)
    assert digest(changed(tiny, {"teacher.class_names": None})) == plain
    assert digest(changed(tiny, {"teacher.input.mean": [0.41]})) != plain
    assert digest(changed(tiny, {"teacher.arguments": {"dropout": 0.5}})) != plain
    source = tmp_path / "tinynet.py"
    text = source.read_text()
    source.write_text("# a comment\n" + text)
    assert digest(tiny) == plain
    source.write_text(text.replace("nn.ReLU()", "nn.ELU()", 1))
    assert digest(tiny) != plain
    source.write_text(text)
    state = load_file(tmp_path / "teacher.safetensors")
    state["8.bias"][0] += 1
    save_file(state, tmp_path / "teacher.safetensors")
    assert digest(tiny) != plain


def test_a_teacher_is_frozen(tiny: Params) -> None:
    _, teacher = load(tiny)
    assert not any(module.training for module in teacher.network.modules())
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_the_file_digest_is_checked_before_the_file_is_read(tiny: Params, tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    (tmp_path / "teacher.pt").write_bytes(pickle.dumps(Evil(marker)))
    changes = {"teacher.weights": str(tmp_path / "teacher.pt"), "teacher.sha256": "0" * 64}
    text = complaint(load, changed(tiny, changes))
    assert "teacher.sha256 says 0000" in text
    assert not marker.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher.classes": 4, "teacher.class_names": None}, "returns 3 logits"),
        ({"teacher.input.height": 12}, "cannot take images"),
        ({"teacher.arguments": {"width": 7}}, "size mismatch"),
        ({"teacher.arguments": {"depth": 7}}, "teacher.arguments does not fit"),
    ],
)
def test_a_teacher_that_does_not_fit_its_section(
    tiny: Params, changes: dict[str, Any], said: str
) -> None:
    assert said in complaint(load, changed(tiny, changes))


@pytest.mark.parametrize("body", ["return x", "return [x.flatten(1)]", "return {'logits': x}"])
def test_a_teacher_that_returns_no_logits(tiny: Params, tmp_path: Path, body: str) -> None:
    file = tmp_path / "strange.py"
    file.write_text(
        "from torch import nn\n"
        "class Strange(nn.Module):\n"
        "    def forward(self, x):\n"
        f"        {body}\n"
        "def make(): return Strange()\n"
    )
    changes = {"teacher.source": f"{file}:make", "teacher.weights": None}
    assert "must return logits" in complaint(load, changed(tiny, changes))
    unsaid = changed(tiny, {**changes, "teacher.classes": None, "teacher.class_names": None})
    assert "must return logits" in complaint(parse_params, unsaid)


def test_a_teacher_that_returns_probabilities(tiny: Params, tmp_path: Path) -> None:
    """They would teach next to nothing, and nobody would know why."""
    file = tmp_path / "certain.py"
    file.write_text(
        f"{FACTORY}\ndef certain(): return nn.Sequential(classifier(), nn.Softmax(dim=1))\n"
    )
    changes = {"teacher.source": f"{file}:certain", "teacher.weights": None}
    said = complaint(load, changed(tiny, changes))
    assert "the teacher returns probabilities, but logits are needed" in said


def test_a_factorys_own_weights_are_the_same_every_time(tiny: Params) -> None:
    params = changed(tiny, {"teacher.weights": None, "synthesis.objective.feature": 0})
    torch.manual_seed(1)
    before = torch.get_rng_state()
    _, first = load(params)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    _, second = load(params)
    assert first.digest == second.digest
    assert same(first.network, second.network)


def test_the_digest_is_of_the_code_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that lives for several runs goes on with the module that it imported."""
    file = tmp_path / "edited_factory.py"
    file.write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    as_module, as_file = "edited_factory:classifier", f"{file}:classifier"
    first = factory_digest(as_module, "teacher")
    assert factory_digest(as_file, "teacher") == first
    file.write_text(f"{FACTORY}\nWIDTH = 3\n")
    assert factory_digest(as_module, "teacher") == first
    assert factory_digest(as_file, "teacher") != first
    assert factory_digest("torchvision:resnet18", "teacher") is None
