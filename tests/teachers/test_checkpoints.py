"""Files are read once, and the state dicts in them are found."""

from __future__ import annotations

import argparse
import collections
import datetime
import hashlib
import json
import pathlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.params import parse_params
from pipeline.storage import digest_file, read_bytes
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers import checkpoints
from pipeline.teachers.checkpoints import read_checkpoint
from pipeline.teachers.inert_types import Inert
from tests.conftest import Params, changed, dataset, load, make

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}


def found(tmp_path: Path, content: Any, key: str | None = None) -> list[str]:
    """The places of the state dicts in a file with this content."""
    torch.save(content, tmp_path / "weights.pt")
    return list(read_checkpoint(tmp_path / "weights.pt", "teacher", key).states)


@pytest.mark.parametrize("name", ["net", "model_state", "params", "ema_state_dict", "weights", "G"])
def test_a_state_dict_of_any_name(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, {"epoch": 3, "acc": 0.9, name: STATE}) == [name]


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ({"state_dict_ema": STATE, "state_dict": STATE}, ["state_dict", "state_dict_ema"]),
        ({"model_ema": STATE, "model": STATE}, ["model", "model_ema"]),
        ({"state": {"model": STATE}, "step": 3}, ["state.model"]),
        ({**STATE, "epoch": 3}, [""]),
        (
            {"model": STATE, "optimizer": {"state": {0: {"momentum_buffer": STATE["bias"]}}}},
            ["model"],
        ),
        ({"loss": torch.tensor(0.5), "net": STATE}, ["net"]),
    ],
)
def test_where_state_dicts_are(tmp_path: Path, content: Any, places: list[str]) -> None:
    assert found(tmp_path, content) == places


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("state_dict_ema", {"state_dict": STATE, "state_dict_ema": STATE}),
        ("ema.state_dict", {"ema": {"state_dict": STATE}}),
        ("a.b", {"a.b": STATE}),
        (
            "state_dict.encoder",
            {"state_dict": {"encoder.weight": STATE["weight"], "x.y": STATE["bias"]}},
        ),
    ],
)
def test_weights_key_chooses(tmp_path: Path, key: str, value: Any) -> None:
    torch.save(value, tmp_path / "weights.pt")
    states = read_checkpoint(tmp_path / "weights.pt", "teacher", key).states
    assert list(states) == [key]
    assert torch.equal(states[key]["weight"], STATE["weight"])


def test_a_refusal_lists_the_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a state dict .* it holds epoch, history"):
        found(tmp_path, {"epoch": 3, "history": [1, 2]})
    with pytest.raises(UserError, match=r"weights_key is 'ema', but .* it holds epoch, net"):
        found(tmp_path, {"epoch": 3, "net": STATE}, "ema")
    with pytest.raises(UserError, match=r"k0, k1, .* and 28 more"):
        found(tmp_path, {f"k{index}": index for index in range(40)})


HARMLESS: list[Any] = [
    argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs")),
    np.float64(0.93),
    np.int64(3),
    np.bool_(True),
    np.zeros((2, 3), np.float32),
    np.dtype("int32"),
    collections.OrderedDict(a=1),
    collections.defaultdict(list, a=[1]),
    Path("runs/1"),
    datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    datetime.timedelta(seconds=3),
    types.SimpleNamespace(lr=0.1),
    torch.__version__,
    {"history": [np.float32(0.5), {"at": datetime.date(2024, 1, 2)}]},
]


@pytest.mark.parametrize("value", HARMLESS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_types_beside_the_weights(tmp_path: Path, value: Any, zipped: bool) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"net": STATE, "extra": value}, path, _use_new_zipfile_serialization=zipped)
    states = read_checkpoint(path, "teacher").states
    assert torch.equal(states["net"]["weight"], STATE["weight"])


def test_nothing_of_a_harmless_type_is_executed(tmp_path: Path) -> None:
    class Loud(argparse.Namespace):
        def __reduce__(self) -> tuple[Any, ...]:
            return argparse.Namespace, ("an argument that Namespace would refuse",)

    torch.save({"net": STATE, "extra": Loud()}, tmp_path / "weights.pt")
    assert list(read_checkpoint(tmp_path / "weights.pt", "teacher").states) == ["net"]
    assert vars(Inert("a", "b")) == {}


def test_a_type_of_the_user_is_named(tmp_path: Path) -> None:
    torch.save({"net": STATE, "extra": pytest.raises}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"an object of the type \S*raises\).*could run code"):
        read_checkpoint(tmp_path / "weights.pt", "teacher")


def in_parts(folder: Path, names: dict[str, str]) -> Path:
    for file in set(names.values()):
        save_file({name: STATE[name] for name in STATE if names[name] == file}, folder / file)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return path


def test_a_checkpoint_in_parts(tmp_path: Path) -> None:
    path = in_parts(tmp_path, {"weight": "model-1.safetensors", "bias": "model-2.safetensors"})
    read = read_checkpoint(path, "teacher")
    assert read.states[""].keys() == STATE.keys()
    assert {file.name: file.sha256 for file in read.files} == {
        name: digest_file(tmp_path / name)
        for name in ("model-1.safetensors", "model-2.safetensors")
    }
    with pytest.raises(UserError, match=r"lists several: set teacher.sha256 to null"):
        read_checkpoint(path, "teacher", sha256="0" * 64)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"lists model-2.safetensors, which is missing"):
        read_checkpoint(path, "teacher")


@pytest.mark.parametrize(
    "index", ["[]", "{}", "{", '{"weight_map": {"a": "../a.bin"}}', '{"weight_map": {"a": "/a"}}']
)
def test_an_index_that_is_none_or_leads_elsewhere(tmp_path: Path, index: str) -> None:
    (tmp_path / "m.index.json").write_text(index)
    with pytest.raises(UserError, match="is not the index of a checkpoint in parts"):
        read_checkpoint(tmp_path / "m.index.json", "teacher")


def test_a_file_is_read_once(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []

    def count(path: Any) -> bytes:
        reads.append(path)
        return read_bytes(path)

    monkeypatch.setattr(checkpoints, "read_bytes", count)
    digest = digest_file(Path(tiny["teacher"]["weights"]))
    _, teacher = load(changed(tiny, {"teacher.sha256": digest}))
    assert [file.sha256 for file in teacher.weights] == [digest]
    assert len(reads) == 1


def test_a_file_that_is_replaced_after_the_run_began_is_not_named(tiny: Params) -> None:
    """Equal weights in other bytes: the images were made from the file that was read."""
    from pipeline.execution.runner import open_runner
    from pipeline.stages.synthesize import synthesize

    path = Path(tiny["teacher"]["weights"])
    before = digest_file(path)
    config = parse_params(tiny)
    teacher = load_checked_teacher(config)
    save_file(read_checkpoint(path, "teacher").states[""], path, metadata={"other": "bytes"})
    assert digest_file(path) != before
    with open_runner(config) as run:
        synthesize(config, teacher, run)
    text = (dataset(tiny) / "provenance.json").read_text()
    assert before in text and digest_file(path) not in text


def test_a_file_that_vanishes_after_the_run_began(tiny: Params) -> None:
    path = Path(tiny["teacher"]["weights"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    make(tiny)
    assert digest in (dataset(tiny) / "provenance.json").read_text()


@pytest.mark.parametrize("section", ["teacher", "verifier"])
def test_a_wrong_digest_names_its_section(tiny: Params, section: str) -> None:
    from pipeline.evaluation.inputs import check_evaluation

    wrong = {**tiny["teacher"], "sha256": "0" * 64}
    if section == "teacher":
        with pytest.raises(UserError, match=r"teacher.sha256 says 0000"):
            load({**tiny, "teacher": wrong})
    else:
        config = parse_params({**tiny, "evaluation": {"verifier": wrong}})
        with pytest.raises(UserError, match=r"evaluation.verifier.sha256 says 0000"):
            check_evaluation(config)


def test_a_key_without_a_file(tiny: Params) -> None:
    changes = {"teacher.weights": None, "teacher.weights_key": "net"}
    with pytest.raises(UserError, match="weights_key is a key of a weights file"):
        parse_params(changed(tiny, changes))
