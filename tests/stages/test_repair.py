"""Damage of any kind is found, and mended to the bytes that were there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.dataset.lock import locked
from pipeline.errors import UserError
from pipeline.execution.runner import open_runner
from pipeline.stages.verify import repair, verify
from tests.conftest import Params, changed, load, make, tree


@pytest.fixture
def adaptive(tiny: Params) -> Params:
    params = changed(tiny, {"adaptive.rounds": 1})
    make(params)
    return params


def mended(params: Params) -> list[str]:
    config, teacher = load(params)
    with open_runner(config) as run:
        return repair(config, teacher, run)


def problems(params: Params) -> list[str]:
    config, teacher = load(params)
    return verify(config, teacher, 0.0, lambda images: None)


def test_a_flipped_byte_anywhere(adaptive: Params) -> None:
    """One in every file; ``benchmarks/faults/run.py`` makes 300."""
    root = Path(adaptive["paths"]["dataset"])
    before, rng = tree(root), random.Random(0)
    for name in sorted(before):
        path = root / name
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        assert problems(adaptive), name
        mended(adaptive)
        assert tree(root) == before, name
    assert problems(adaptive) == []


def test_only_the_damaged_is_made_again(adaptive: Params) -> None:
    root = Path(adaptive["paths"]["dataset"])
    before = tree(root)
    untouched = root / "train" / "000000.tar"
    age = untouched.stat().st_mtime_ns
    (root / "train" / "000001.tar").unlink()
    (root / "students" / "000001.safetensors").write_bytes(b"")
    (root / "README.md").unlink()
    assert mended(adaptive) == ["students/000001.safetensors", "shard 000001"]
    assert tree(root) == before
    assert untouched.stat().st_mtime_ns == age


def test_nothing_to_mend(adaptive: Params) -> None:
    assert mended(adaptive) == []


def test_nothing_is_touched_beside_another_run(adaptive: Params) -> None:
    root = Path(adaptive["paths"]["dataset"])
    (root / "train" / "000001.tar").write_bytes(b"")
    (root / "students" / "000001.safetensors").write_bytes(b"")
    before = tree(root)
    with locked(root, "paths.dataset"), pytest.raises(UserError, match="in use by another run"):
        mended(adaptive)
    assert tree(root) == before


def test_strangers_are_left_alone(adaptive: Params) -> None:
    stranger = Path(adaptive["paths"]["dataset"]) / "notes.txt"
    stranger.write_text("mine")
    mended(adaptive)
    assert stranger.read_text() == "mine"
    assert problems(adaptive) == ["notes.txt does not belong to the dataset"]
