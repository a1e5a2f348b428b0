"""The job that makes one shard: what a worker receives and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import Config
from pipeline.dataset.held_lock import Lock
from pipeline.dataset.layout import Layout, shard_name
from pipeline.dataset.record_files import read_record
from pipeline.dataset.records import is_current
from pipeline.storage import Location, location, size_of


@dataclass(frozen=True, slots=True)
class Competitor:
    """The student that an adaptive round competes with.

    Attributes:
        weights: its weights file.
        sha256: the digest of that file.
    """

    weights: Location
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardJob:
    """Everything that a worker needs to make one shard.

    Attributes:
        config: all parameters.
        number: the number of the shard.
        spec: everything that the bytes of the shard depend on.
        competitor: the student of its round; None in round 0.
        images: the number of its images.
        lock: the lock that the run holds on the dataset, if any.
    """

    config: Config
    number: int
    spec: dict[str, Any]
    competitor: Competitor | None
    images: int
    lock: Lock | None = None

    def __str__(self) -> str:
        return f"shard-{shard_name(self.number)}"

    @property
    def compiles(self) -> bool:
        """Whether the first step compiles, for the progress bar."""
        return self.config.compiled and not self.config.synthesis.checkpointing


@dataclass(frozen=True, slots=True)
class Made:
    """A shard that was made, and the seconds that this took.

    The dataset does not hold the seconds, because they depend on the machine.
    """

    number: int
    images: int
    seconds: float


def is_done(job: ShardJob) -> bool:
    """Whether the shard is complete and was made to the spec of the job."""
    root = location(job.config.paths.dataset)
    record = read_record(Layout(root).record(job.number))
    return is_current(record, job.spec, lambda name: size_of(root / name))
