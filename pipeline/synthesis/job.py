"""The job of one shard: everything that a worker needs to make it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import Config
from pipeline.dataset.layout import record_path
from pipeline.dataset.records import is_current, read_record
from pipeline.storage import Location, location, size_of


@dataclass(frozen=True, slots=True)
class Competitor:
    """The student that a round competes with: its weights file and their digest."""

    weights: Location
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardJob:
    """All a worker needs to make one shard."""

    config: Config
    number: int
    spec: dict[str, Any]
    competitor: Competitor | None
    images: int

    def __str__(self) -> str:
        return f"shard-{self.number:06d}"


@dataclass(frozen=True, slots=True)
class Made:
    """What making a shard took. Not published: it depends on the machine."""

    number: int
    images: int
    seconds: float


def is_done(job: ShardJob) -> bool:
    root = location(job.config.paths.dataset)
    record = read_record(record_path(root, job.number))
    return is_current(record, job.spec, lambda name: size_of(root / name))
