"""Looks into a dataset's directory, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.stages.verify import verify
from pipeline.synthesis.shard_states import shard_states
from tests.conftest import Params, load, tree

WHOLE = [
    "README.md",
    "_info.json",
    "croissant.json",
    "dreamshard.json",
    "index.json",
    "provenance.json",
]


Row = dict[str, Any]


def shard_files(*numbers: int) -> list[str]:
    return [
        name
        for number in numbers
        for name in (
            f"metadata/{number:06d}.json",
            f"metadata/{number:06d}.parquet",
            f"train/{number:06d}.tar",
        )
    ]


def files(root: Path) -> list[str]:
    return list(tree(root))


def times(root: Path) -> dict[str, int]:
    """The modification time of each file of a shard or a student, by its relative path."""
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for folder in ("train", "metadata", "students")
        for path in (root / folder).glob("0*")
    }


def states(params: Params) -> dict[int, str]:
    config, teacher = load(params)
    return shard_states(config, teacher.digest)


def rows(root: Path, number: int) -> list[Row]:
    found: list[Row] = pq.read_table(root / "metadata" / f"{number:06d}.parquet").to_pylist()
    return found


def verified(params: Params) -> list[str]:
    return verify(*load(params), 0.0, lambda images: None)
