"""A stale shard is told with what changed, in words."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.dataset.records import parse_record
from pipeline.stages.status import dataset_status, describe_status
from pipeline.storage import digest_bytes, json_bytes
from pipeline.synthesis import spec as spec_module
from pipeline.synthesis.shard_states import survey
from pipeline.synthesis.staleness import joined, stale_reasons
from tests.command_line import printed, refused
from tests.conftest import FACTORY, Params, changed, dataset, load, make, write_params


def reasons(params: Params, number: int = 0) -> list[str]:
    config, teacher = load(params)
    (found,) = survey(config, teacher.digest, [number])
    return stale_reasons(found, teacher.parts)


def edit_record(path: Path, **facts: Any) -> None:
    """Change facts of a record, and seal it again. None removes a fact."""
    record = {**json.loads(path.read_bytes()), **facts}
    kept = {name: value for name, value in record.items() if value is not None}
    del kept["sha256"]
    path.write_bytes(json_bytes({**kept, "sha256": digest_bytes(json_bytes(kept))}))


def test_a_complete_or_missing_shard_has_no_reason(made: Params) -> None:
    assert reasons(made) == []
    (dataset(made) / "metadata/000000.json").unlink()
    assert reasons(made) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"synthesis.iterations": 9}, ["synthesis.iterations changed from 4 to 9"]),
        ({"synthesis.confirmed": True}, ["synthesis.confirmed changed from false to true"]),
        ({"synthesis.soft_labels": True}, ["synthesis.soft_labels changed from false to true"]),
        ({"synthesis.views": 2}, ["synthesis.views changed"]),
        ({"synthesis.seed": 7}, ["synthesis.seed changed"]),
        ({"synthesis.batch_size": 4}, ["synthesis.batch_size changed"]),
        ({"synthesis.images": 11}, ["the number of images or their classes changed"]),
        ({"teacher.class_names": ["a", "b", "c"]}, ["teacher.class_names changed"]),
        ({"teacher.input.mean": [0.5]}, ["teacher.input changed"]),
        ({"teacher.arguments": {"width": 6}}, ["teacher.arguments changed"]),
    ],
)
def test_changed_parameters(made: Params, changes: dict[str, Any], expected: list[str]) -> None:
    assert reasons(changed(made, changes)) == expected


def test_only_the_sample_keys_changed(made: Params) -> None:
    keys = "synthesis.shard_size, batch_size or images_per_class changed"
    assert reasons(changed(made, {"synthesis.shard_size": 13, "synthesis.images": 12})) == [keys]


def test_the_parts_of_the_teacher(made: Params, tmp_path: Path) -> None:
    file, weights = tmp_path / "tinynet.py", tmp_path / "weights.safetensors"
    shutil.copy(made["teacher"]["weights"], weights)
    file.write_text(FACTORY)
    params = changed(
        made, {"teacher.source": f"{file}:classifier", "teacher.weights": str(weights)}
    )
    assert reasons(params) == []
    file.write_text(FACTORY.replace("Dropout(dropout)", "Dropout(dropout / 2)"))
    assert reasons(params) == ["the code of the teacher's factory changed"]
    tensors = load_file(weights)
    save_file({name: tensor + torch.zeros(1) for name, tensor in tensors.items()}, weights)
    file.write_text(FACTORY)
    assert reasons(params) == []
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    save_file({**tensors, first: tensors[first] * 2}, weights)
    assert reasons(params) == ["the teacher's weights changed"]
    shutil.copy(file, tmp_path / "other.py")
    params = changed(params, {"teacher.source": f"{tmp_path / 'other.py'}:classifier"})
    assert reasons(params) == [
        "teacher.source changed from tinynet.py:classifier to other.py:classifier",
        "the teacher's weights changed",
    ]


def test_the_code_of_dreamshard(made: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_module, "package_digest", lambda names: "0" * 64)
    monkeypatch.setattr(torch, "__version__", "9.9.9+cpu")
    own, of_torch = reasons(made)
    assert own == "dreamshard's own code changed"
    assert of_torch.startswith("torch changed from ") and of_torch.endswith(" to 9.9.9")


def test_a_file_of_another_size(made: Params) -> None:
    (dataset(made) / "train/000000.tar").write_bytes(b"")
    assert reasons(made) == ["a file of the shard is missing or has another size"]


def test_a_record_of_an_earlier_version(made: Params) -> None:
    path = dataset(made) / "metadata/000000.json"
    edit_record(path, teacher_parts=None)
    record = parse_record(path.read_bytes())
    assert record is not None and record.teacher_parts is None
    assert "teacher_parts" not in record.to_json()
    assert reasons(made) == []
    assert reasons(changed(made, {"teacher.input.mean": [0.5]})) == ["the teacher changed"]


def test_a_record_cannot_name_other_parts_than_its_spec(made: Params) -> None:
    path = dataset(made) / "metadata/000000.json"
    parts = json.loads(path.read_bytes())["teacher_parts"]
    edit_record(path, teacher_parts={**parts, "code": "0" * 64})
    assert parse_record(path.read_bytes()) is None


def test_the_commands_say_why(
    made: Params,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    params = changed(made, {"synthesis.iterations": 9, "teacher.input.mean": [0.5]})
    path = str(write_params(params, tmp_path / "params.yaml"))
    why = "synthesis.iterations changed from 4 to 9"
    assert f"stale because {why}: 000000-000001" in printed(capsys, "status", "--params", path)
    lines = printed(capsys, "status", "--teacher", "--params", path)
    assert lines[1:3] == [
        "stale because teacher.input changed: 000000-000001",
        f"stale because {why}: 000000-000001",
    ]
    assert f"000000 (stale: teacher.input changed, {why})" in refused(
        capsys, "distill", "--params", path
    )
    with caplog.at_level(logging.WARNING):
        make(params)
    assert f"2 of 2 shards are made again (teacher.input changed, {why})" in caplog.text


def test_status_without_the_teacher_compares_the_records(made: Params) -> None:
    make(changed(made, {"teacher.input.mean": [0.5]}), range(0, 1))
    config, _ = load(made)
    lines = list(describe_status(dataset_status(config)))
    assert "stale because teacher.input changed: 000001" in lines


def test_many_reasons_are_cut() -> None:
    assert joined(list("abc")) == "a, b, c"
    assert joined(list("abcdefg")) == "a, b, c, d, e, and 2 more"
