"""The names of a dataset's files, and that no other module spells them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.dataset.layout import (
    CLAIM,
    INDEX_FILES,
    LOCK,
    Layout,
    dataset_names,
    index_names,
    is_leftover,
    is_lock,
    marker_name,
    marker_of,
    record_name,
    rows_name,
    sample_key,
    shard_of,
    shared_lock_name,
    student_name,
    student_of,
    tar_name,
)
from pipeline.local_files import temporary_name
from pipeline.source_digest import PACKAGE
from tests.conftest import Params, changed, dataset, make, tree

# Folders, numbers of six digits, index files and members of a sample, as code would spell them.
SPELLINGS = re.compile(
    r"""(?:train|metadata|students)/(?:\{|\*|\.|\(|\d|sizes)
    | /\s*"(?:train|metadata|students)"
    | :06d | \\d\{6
    | _info\.json | (?<![.\w])index\.json | provenance\.json | sizes\.json
    | "(?:png|npy)" | logits\.npy
    | parts\[" | sample\["(?:cls|json) """,
    re.VERBOSE,
)


def test_no_other_module_spells_a_name() -> None:
    lines = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "dataset" / "layout.py"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if SPELLINGS.search(line) and "``" not in line  # examples in docstrings are welcome
    ]
    assert lines == []


def test_layout_is_where_names_are_spelt() -> None:
    """The pattern above is not blind."""
    text = (PACKAGE / "dataset" / "layout.py").read_text()
    assert len(SPELLINGS.findall(text)) > 10


@pytest.mark.parametrize(("rounds", "captions"), [(0, None), (1, None), (0, "a {}")])
def test_the_names_are_those_of_a_finished_dataset(
    tiny: Params, rounds: int, captions: str | None
) -> None:
    params = changed(tiny, {"adaptive.rounds": rounds, "synthesis.captions": captions})
    make(params)
    names = set(tree(dataset(params)))
    assert names == dataset_names(2 + rounds, rounds, captions is not None)
    assert {name for name in names if "/" not in name or "sizes" in name} == {
        *index_names(captions is not None),
        CLAIM,
    }


def test_names_and_locations_are_the_same_files() -> None:
    layout = Layout(Path("data"))
    assert str(layout.tar(7)) == f"data/{tar_name(7)}" == "data/train/000007.tar"
    assert str(layout.rows(7)) == f"data/{rows_name(7)}" == "data/metadata/000007.parquet"
    assert str(layout.record(7)) == f"data/{record_name(7)}" == "data/metadata/000007.json"
    assert str(layout.marker(7, "failed")) == "data/metadata/.000007.failed.json"
    assert str(layout.student(2)) == f"data/{student_name(2)}" == "data/students/000002.safetensors"
    assert layout.tars([2, 1]) == (layout.tar(2), layout.tar(1))
    assert sample_key("a1b2c3d4", 12) == "a1b2c3d4-000000012"
    assert tar_name(1_234_567) == "train/1234567.tar"


@pytest.mark.parametrize("number", [0, 999_999, 1_234_567])
def test_the_shard_of_a_name(number: int) -> None:
    names = [tar_name(number), rows_name(number), record_name(number)]
    assert [shard_of(name) for name in names] == [number] * 3
    assert shard_of(marker_name(number, "running")) == number
    assert marker_of(marker_name(number, "running")) == (number, "running")
    assert marker_of(marker_name(number, "failed")) == (number, "failed")
    assert [marker_of(name) for name in names] == [None] * 3


def test_other_files_belong_to_no_shard_and_no_student() -> None:
    others = [*INDEX_FILES, "train/1.tar", "train/x/000001.tar", "000001.tar", "students/1.json"]
    assert [shard_of(name) for name in others] == [None] * len(others)
    assert [student_of(name) for name in others] == [None] * len(others)
    assert student_of(student_name(3)) == 3
    assert student_of("students/000003.checkpoint") == 3


def test_leftovers() -> None:
    assert is_leftover(temporary_name("README.md"))
    assert is_leftover(f"train/{temporary_name('x' * 300)}")
    for name in (".notes.tmp", "train/.000000.tar.x1.tmp", "train/000000.tmp", tar_name(0), LOCK):
        assert not is_leftover(name)


def test_locks() -> None:
    assert is_lock(LOCK) and is_lock(shared_lock_name("0" * 32))
    assert not is_lock(".lock") and not is_lock(f"{LOCK}.bak") and not is_lock(CLAIM)
