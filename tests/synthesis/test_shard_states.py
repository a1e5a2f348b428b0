from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import digest_file
from tests.conftest import Params, changed, dataset, make, tree
from tests.synthesis.shards import WHOLE, files, shard_files, states, times


@pytest.mark.parametrize("folder", ["train", "metadata"])
def test_a_lost_file_brings_back_its_shard_alone(tiny: Params, folder: str) -> None:
    make(tiny)
    root = dataset(tiny)
    before, written = tree(root), times(root)
    for path in (root / folder).glob("000001.*"):
        content = path.read_bytes()
        path.unlink()
        assert states(tiny) == {0: "complete", 1: "missing" if path.suffix == ".json" else "stale"}
        assert make(tiny) == [1]
        assert path.read_bytes() == content
    assert tree(root) == before
    assert {n: t for n, t in times(root).items() if "000000" in n} == {
        n: t for n, t in written.items() if "000000" in n
    }


@pytest.mark.parametrize("name", ["train/000000.tar", "metadata/000000.parquet"])
def test_a_file_of_another_size_is_made_again(tiny: Params, name: str) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    with (dataset(tiny) / name).open("ab") as file:
        file.write(b"?")
    assert states(tiny) == {0: "stale", 1: "complete"}
    assert make(tiny) == [0]
    assert tree(dataset(tiny)) == before


def test_a_lost_file_of_the_whole_comes_back(tiny: Params) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    for name in WHOLE:
        (dataset(tiny) / name).unlink()
    assert make(tiny) == []
    assert tree(dataset(tiny)) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"shard": 1}'])
def test_a_record_that_cannot_be_read_is_no_record(tiny: Params, content: bytes) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    (dataset(tiny) / "metadata" / "000000.json").write_bytes(content)
    assert states(tiny) == {0: "missing", 1: "complete"}
    assert make(tiny) == [0]
    assert tree(dataset(tiny)) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("synthesis.iterations", 5),
        ("synthesis.seed", 1),
        ("synthesis.soft_labels", True),
        ("synthesis.batch_size", 3),
        ("synthesis.objective.tv", 0.5),
        ("teacher.class_names", ["a", "b", "c"]),
        ("teacher.input.std", [0.31]),
    ],
)
def test_what_changes_the_images_makes_every_shard_stale(
    tiny: Params, key: str, value: Any
) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    other = changed(tiny, {key: value})
    assert states(other) == {0: "stale", 1: "stale"}
    assert make(other) == [0, 1]
    assert states(other) == {0: "complete", 1: "complete"}
    after = tree(dataset(tiny))
    assert list(after) == list(before)
    assert not set(after.values()) & {before[name] for name in shard_files(0, 1)}
    assert make(tiny) == [0, 1]
    assert tree(dataset(tiny)) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("execution.device", "auto"),
        ("execution.retries", 7),
        ("execution.workers", 3),
        ("paths.reports", "elsewhere"),
        ("distillation.steps", 99),
        ("evaluation.data", "nowhere.tar"),
        ("teacher.sha256", None),
    ],
)
def test_what_does_not_change_the_images_makes_nothing(
    tiny: Params, key: str, value: Any, tmp_path: Path
) -> None:
    if key == "teacher.sha256":
        value = digest_file(tmp_path / "teacher.safetensors")
    make(tiny)
    before = tree(dataset(tiny))
    assert make(changed(tiny, {key: value})) == []
    assert tree(dataset(tiny)) == before


def test_another_teacher_makes_every_shard_stale(tiny: Params, tmp_path: Path) -> None:
    make(tiny)
    source = tmp_path / "tinynet.py"
    source.write_text(source.read_text().replace("nn.ReLU()", "nn.LeakyReLU()", 1))
    assert states(tiny) == {0: "stale", 1: "stale"}


def test_a_smaller_plan_leaves_no_orphan(tiny: Params) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    assert make(changed(tiny, {"synthesis.images": 12})) == []
    assert files(dataset(tiny)) == sorted([*WHOLE, *shard_files(0)])
    assert make(tiny) == [1]
    assert tree(dataset(tiny)) == before


def test_a_larger_plan_keeps_the_full_shards(tiny: Params) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    assert make(changed(tiny, {"synthesis.images": 30})) == [1, 2]
    after = tree(dataset(tiny))
    assert {name: after[name] for name in shard_files(0)} == {
        name: before[name] for name in shard_files(0)
    }
