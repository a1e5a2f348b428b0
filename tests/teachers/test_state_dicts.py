"""State dicts under other names, with wrong tensors, or several in one file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.teachers.networks import load_weights
from tests.conftest import Params, changed, load


class Head(nn.Module):
    """A convolution, a BatchNorm and a linear layer."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, bias=bias)
        self.norm = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, 3)


class Wrapped(nn.Module):
    """The same network inside another, as one that normalises its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Head()


class Tied(nn.Module):
    """Two linear layers that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


class Masked(nn.Module):
    """A network with a persistent attention mask."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("mask", torch.zeros(2, 2))


def trained(network: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 0.9)
    return network


def equal(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def read(network: nn.Module, content: Any, tmp_path: Path, key: str | None = None) -> str:
    """Load a file with this content into the network; the note about it."""
    torch.save(content, tmp_path / "w.pt")
    return load_weights(network, tmp_path / "w.pt", "teacher", key).note


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "backbone.", "net.", "model.", "module._orig_mod.", "a.b.c."],
)
def test_a_prefix_that_all_names_share_is_taken_off(tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in trained(Head()).state_dict().items()}
    network = Head()
    assert read(network, state, tmp_path) == f"the prefix `{prefix}` of all names is taken off"
    assert equal(network, trained(Head()))


def test_a_prefix_that_the_network_itself_has_stays(tmp_path: Path) -> None:
    network = Wrapped()
    assert read(network, trained(Wrapped()).state_dict(), tmp_path) == ""
    assert equal(network, trained(Wrapped()))


def test_the_prefix_of_a_wrapping_network_is_added(tmp_path: Path) -> None:
    network = Wrapped()
    assert "`net.` of the network is put before" in read(
        network, trained(Head()).state_dict(), tmp_path
    )
    assert equal(network, trained(Wrapped()))


def test_wrappers_of_single_layers_are_taken_out(tmp_path: Path) -> None:
    """As DataParallel on `features` alone, or torch.compile on single blocks."""
    state = {
        name.replace("conv.", "conv.module.").replace("norm.", "norm._orig_mod."): tensor
        for name, tensor in trained(Head()).state_dict().items()
    }
    network = Head()
    assert "is taken out of all names" in read(network, state, tmp_path)
    assert equal(network, trained(Head()))


@pytest.mark.parametrize(
    "extra",
    [
        {"n_averaged": torch.tensor(3)},
        {"total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)},
        {"fc.num_batches_tracked": torch.tensor(1)},
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_bookkeeping_beside_the_weights(
    tmp_path: Path, extra: dict[str, Tensor], prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in trained(Head()).state_dict().items()}
    network = Head()
    read(network, {**state, **extra}, tmp_path)
    assert equal(network, trained(Head()))


def test_one_of_several_is_taken_and_said(tmp_path: Path) -> None:
    one, other = trained(Head()).state_dict(), Head().state_dict()
    network = Head()
    note = read(network, {"state_dict_ema": other, "state_dict": one}, tmp_path)
    assert note == (
        "the state dict `state_dict` is taken; `state_dict_ema` would fit too: weights_key chooses"
    )
    assert equal(network, trained(Head()))
    note = read(network, {"model_ema": one, "model": other}, tmp_path, "model_ema")
    assert note == "the state dict `model_ema` is taken"
    assert equal(network, trained(Head()))


def test_the_one_that_fits_is_taken(tmp_path: Path) -> None:
    content = {"model": {"other.weight": torch.zeros(2)}, "net": trained(Head()).state_dict()}
    network = Head()
    assert read(network, content, tmp_path) == "the state dict `net` is taken"
    assert equal(network, trained(Head()))


def test_a_doubtful_choice_is_a_warning_and_a_key_ends_it(
    tiny: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import load_file

    state = load_file(tiny["teacher"]["weights"])
    path = tmp_path / "two.pt"
    torch.save({"model": state, "model_ema": {k: v * 1 for k, v in state.items()}}, path)
    _, first = load(changed(tiny, {"teacher.weights": str(path)}))
    assert "`model_ema` would fit too" in caplog.text
    caplog.clear()
    changes = {"teacher.weights": str(path), "teacher.weights_key": "model_ema"}
    _, second = load(changed(tiny, changes))
    assert caplog.text == ""
    assert first.digest == second.digest
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match="holds model, model_ema"):
        load(changed(tiny, {**changes, "teacher.weights_key": "absent"}))


def test_a_part_of_a_larger_network_is_pointed_at(tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in trained(Head()).state_dict().items()}
    content = {"state_dict": {**state, "criterion.weight": torch.ones(3)}}
    with pytest.raises(UserError, match=r"set weights_key to state_dict\.model"):
        read(Head(), content, tmp_path)
    network = Head()
    read(network, content, tmp_path, "state_dict.model")
    assert equal(network, trained(Head()))


def folded(network: nn.Module) -> dict[str, Tensor]:
    state = {n: t for n, t in network.state_dict().items() if not n.startswith("norm.")}
    return {**state, "conv.bias": torch.zeros(2)}


def test_folding_is_guessed_only_where_nothing_else_explains_it(tmp_path: Path) -> None:
    state = trained(Head()).state_dict()
    with pytest.raises(UserError, match="was folded"):
        read(Head(), folded(trained(Head())), tmp_path)
    with pytest.raises(UserError, match="was folded"):
        read(Head(), {f"module.{n}": t for n, t in folded(trained(Head())).items()}, tmp_path)
    others = [
        {f"x.{name}" if name != "fc.bias" else "y.bias": t for name, t in state.items()},
        {name.replace("norm", "bn"): t for name, t in state.items()},
        {name: t for name, t in state.items() if not name.startswith("norm.running")},
        {name: t for name, t in state.items() if not name.startswith("norm.")},
        {**folded(trained(Head())), "extra.weight": torch.zeros(1)},
        {"conv.bias": torch.zeros(2)},
    ]
    for other in others:
        with pytest.raises(UserError, match="does not fit") as caught:
            read(Head(), other, tmp_path)
        assert "folded" not in str(caught.value)


def test_tied_tensors_of_safetensors(tmp_path: Path) -> None:
    tied = trained(Tied())
    save_model(tied, str(tmp_path / "tied.safetensors"))
    network = Tied()
    load_weights(network, tmp_path / "tied.safetensors", "teacher")
    assert equal(network, tied)
    apart = nn.Module()
    apart.first, apart.second = nn.Linear(3, 3), nn.Linear(3, 3)
    load_weights(apart, tmp_path / "tied.safetensors", "teacher")  # the file says which share
    assert equal(apart, tied)


def test_tied_tensors_of_a_pytorch_file(tmp_path: Path) -> None:
    state = trained(Tied()).state_dict()
    del state["first.weight"]
    network = Tied()
    read(network, state, tmp_path)
    assert equal(network, trained(Tied()))


def test_tied_tensors_behind_a_prefix(tmp_path: Path) -> None:
    state = {f"module.{n}": t for n, t in trained(Tied()).state_dict().items()}
    del state["module.second.weight"]
    network = Tied()
    read(network, state, tmp_path)
    assert equal(network, trained(Tied()))


def with_weight(tensor: Tensor) -> dict[str, Tensor]:
    return {**trained(Head()).state_dict(), "fc.weight": tensor}


WEIGHT = trained(Head()).state_dict()["fc.weight"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (WEIGHT.to(torch.complex64), "fc.weight is complex64, whose imaginary parts"),
        (WEIGHT > 0.5, "fc.weight is bool where"),
        ((WEIGHT * 100).to(torch.int8), "fc.weight is int8 where .* scale is unknown"),
        ((WEIGHT * 100).to(torch.uint8), "fc.weight is uint8 where"),
        (WEIGHT.to_sparse(), "fc.weight is sparse"),
        (WEIGHT.to_sparse_csr(), "fc.weight is sparse"),
        (torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8), "fc.weight is quantised"),
        (torch.full_like(WEIGHT, 1e300, dtype=torch.float64), "NaN or infinite values"),
        (torch.zeros(0, 2), "size mismatch for fc.weight"),
    ],
)
def test_tensors_that_would_lose_something_are_refused(
    tmp_path: Path, tensor: Tensor, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(Head(), with_weight(tensor), tmp_path)
    assert "w.pt" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_tensor_without_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"w\.pt"):
        read(Head(), with_weight(WEIGHT.to("meta")), tmp_path)


def test_a_counter_may_not_have_a_fraction(tmp_path: Path) -> None:
    state = trained(Head()).state_dict()
    read(Head(), {**state, "norm.num_batches_tracked": torch.tensor(3.0)}, tmp_path)
    with pytest.raises(UserError, match=r"where the network has integers"):
        read(Head(), {**state, "norm.num_batches_tracked": torch.tensor(3.5)}, tmp_path)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_floating_point_types_are_read(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    state = with_weight(torch.full((3, 2), 0.5, dtype=dtype))
    network = Head()
    path = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    load_weights(network, path, "teacher")
    assert network.fc.weight.dtype == torch.float32
    assert bool((network.fc.weight == 0.5).all())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_nan_in_float8_is_found(tmp_path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=r"w\.pt holds NaN or infinite values"):
        read(Head(), with_weight(torch.full((3, 2), float("nan")).to(dtype)), tmp_path)


def test_only_parameters_and_statistics_must_be_finite(tmp_path: Path) -> None:
    state = trained(Masked()).state_dict()
    state["mask"] = torch.tensor([[0.0, float("-inf")], [0.0, 0.0]])
    network = Masked()
    read(network, state, tmp_path)
    assert torch.isinf(network.mask).any()
    state["fc.bias"] = torch.tensor([0.0, float("inf")])
    with pytest.raises(UserError, match=r"infinite values \(first: fc.bias\)"):
        read(Masked(), state, tmp_path)


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=3, layer_type="basic"
    )
    network = trained(transformers.ResNetForImageClassification(config))
    network.save_pretrained(tmp_path / "hf")  # type: ignore[operator]
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "whole.safetensors")
    torch.save(network.state_dict(), tmp_path / "whole.bin")
    return tmp_path / "hf"


def hugging_face(tiny: Params, folder: Path) -> Params:
    section = {"source": f"hf:{folder}", "weights": "pretrained"}
    size = {"channels": 3, "height": 32, "width": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    return {**tiny, "teacher": {**section, "input": size}}


@pytest.mark.parametrize("kind", ["pytorch", "safetensors"])
@pytest.mark.parametrize("parts", [1, 2])
def test_weights_of_a_hugging_face_folder(
    tiny: Params, resnet: Path, kind: str, parts: int
) -> None:
    import json

    state = torch.load(resnet.parent / "whole.bin", weights_only=True)
    stem, suffix = ("pytorch_model", "bin") if kind == "pytorch" else ("model", "safetensors")
    names = {key: index % parts for index, key in enumerate(state)}
    files = [f"{stem}.{suffix}"]
    if parts > 1:
        files = [f"{stem}-{part}.{suffix}" for part in range(parts)]
        index = {"weight_map": {key: files[part] for key, part in names.items()}}
        (resnet / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    for part, file in enumerate(files):
        tensors = {key: state[key] for key in state if names[key] == part}
        if kind == "pytorch":
            torch.save(tensors, resnet / file)
        else:
            save_file(tensors, resnet / file)
    _, teacher = load(hugging_face(tiny, resnet))
    loaded = teacher.network.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    expected = ["pretrained"] if parts == 1 else [f"pretrained/{file}" for file in files]
    assert [file.name for file in teacher.weights] == expected


def test_a_hugging_face_folder_without_weights(tiny: Params, resnet: Path) -> None:
    (resnet / "tf_model.h5").write_bytes(b"\x89HDF")
    with pytest.raises(UserError, match=r"It holds config.json, tf_model.h5: name a file"):
        load(hugging_face(tiny, resnet))
    (resnet / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config.json"):
        load(hugging_face(tiny, resnet))


def test_a_folder_that_lacks_a_part(tiny: Params, resnet: Path) -> None:
    (resnet / "model.safetensors.index.json").write_text('{"weight_map": {"a": "m-1.safetensors"}}')
    with pytest.raises(UserError, match=r"has no m-1.safetensors"):
        load(hugging_face(tiny, resnet))
    (resnet / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="is not the index of weights in parts"):
        load(hugging_face(tiny, resnet))
