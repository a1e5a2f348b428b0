"""What is there of a dataset: its shards and students, from their records and one listing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config import Config
from pipeline.distillation import DistillJob, is_trained, student_problem
from pipeline.errors import UserError
from pipeline.plan import ShardPlan, derive_seed
from pipeline.provenance import ShardRecord, is_current, parse_record
from pipeline.storage import (
    Location,
    Stat,
    digest_file,
    digest_json,
    exists,
    listing,
    location,
    read_many,
)
from pipeline.synthesis import plan_of, record_path, round_spec, shard_spec

State = Literal["complete", "stale", "missing"]
CHUNK = 1000  # records in memory at once


@dataclass(frozen=True, slots=True)
class Found:
    """A planned shard, what it is to be made from, and the record that is there of it."""

    shard: ShardPlan
    spec: dict[str, Any]
    record: ShardRecord | None
    text: bytes  # of the record
    state: State


def survey(
    config: Config,
    teacher_digest: str,
    numbers: Iterable[int] | None = None,
    files: Mapping[str, Stat] | None = None,
    students: Mapping[int, str] | None = None,
) -> Iterator[Found]:
    """Every planned shard in order, or those of ``numbers``, one at a time.

    ``complete`` is made to today's parameters, ``stale`` to others or no longer whole. ``files``
    and ``students`` are what :func:`listing` and :func:`dataset_students` say, where known.
    """
    layout, root = plan_of(config), location(config.paths.dataset)
    files = listing(root) if files is None else files
    students = dataset_students(config, teacher_digest) if students is None else students
    rounds = {
        round_: round_spec(config, round_, teacher_digest, students.get(round_))
        for round_ in range(config.adaptive.rounds + 1)
    }

    def size(name: str) -> int:
        return files[name].size if name in files else -1

    numbers = range(len(layout)) if numbers is None else numbers
    for number, record, text in records_of(root, numbers, files):
        shard = layout.shard(number)
        spec = shard_spec(rounds[shard.round], shard)
        state: State = "stale" if record else "missing"
        if is_current(record, spec, size):
            state = "complete"
        yield Found(shard, spec, record, text, state)


def shard_states(config: Config, teacher_digest: str) -> dict[int, State]:
    """The state of every planned shard."""
    return {found.shard.number: found.state for found in survey(config, teacher_digest)}


def check_complete(states: Mapping[int, str]) -> None:
    """Nothing less is to be learnt from or published: never a mix of old and new.

    Raises:
        UserError: which shards are not complete.
    """
    if undone := [number for number, state in states.items() if state != "complete"]:
        raise UserError(
            f"{len(undone)} of {len(states)} shards are not complete ({ranges(undone)}), "
            f"the first {undone[0]:06d} ({states[undone[0]]}): run synthesize first"
        )


def ranges(numbers: Sequence[int], most: int = 8) -> str:
    """``000003, 000005-000007``: at most ``most`` runs of neighbours, and that there are more."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [f"{a:06d}" if a == b else f"{a:06d}-{b:06d}" for a, b in runs[:most]]
    return ", ".join(shown + ["..."] * (len(runs) > most))


def records_of(
    root: Location, numbers: Iterable[int], files: Mapping[str, Stat] | None = None
) -> Iterator[tuple[int, ShardRecord | None, bytes]]:
    """Number, record and the record's bytes of each shard; None where there is no sound record.

    Where ``files`` is given, no record is asked for that is not among them.
    """
    remaining = iter(numbers)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        paths = {number: record_path(root, number) for number in chunk}
        there = [n for n in chunk if files is None or f"metadata/{paths[n].name}" in files]
        texts = dict(zip(there, read_many([paths[n] for n in there]), strict=True))
        for number in chunk:
            text = texts.get(number)
            yield number, parse_record(text), text or b""


def read_records(config: Config) -> Iterator[ShardRecord]:
    """The records of all planned shards that have one, one at a time."""
    root = location(config.paths.dataset)
    for _, record, _ in records_of(root, range(len(plan_of(config)))):
        if record is not None:
            yield record


def dataset_digest(root: Location, numbers: Iterable[int]) -> str:
    """A digest of the images of complete shards, from their records."""
    digests = []
    for number, record, _ in records_of(root, numbers):
        if record is None:
            raise UserError(f"shard {number:06d} of {root} is missing: run synthesize first")
        digests.append(record.tar["sha256"])
    return digest_json(digests)


def student_path(root: Location, round_: int) -> Location:
    """The weights of the student that ``round_`` competes with."""
    return root / "students" / f"{round_:06d}.safetensors"


def round_job(config: Config, teacher_digest: str, round_: int) -> DistillJob:
    """The student of all rounds before, trained on their shards, on from its predecessor.

    Raises:
        UserError: one of these shards is missing.
    """
    root = location(config.paths.dataset)
    numbers = range(plan_of(config).of_round(round_).start)
    return DistillJob(
        name=f"student-of-round-{round_}",
        teacher=config.teacher,
        teacher_digest=teacher_digest,
        student=config.student,
        training=config.adaptive.training,
        shards=tuple(root / "train" / f"{number:06d}.tar" for number in numbers),
        dataset=dataset_digest(root, numbers),
        seed=derive_seed(config.synthesis.seed, round_),
        output=student_path(root, round_),
        start=student_path(root, round_ - 1) if round_ > 1 else None,
    )


def dataset_students(config: Config, teacher_digest: str) -> dict[int, str]:
    """Of each adaptive round whose student is there, and was trained as it would be today: the
    digest of its weights."""
    root, students = location(config.paths.dataset), {}
    for round_ in range(1, config.adaptive.rounds + 1):
        path = student_path(root, round_)
        if not exists(path):
            continue
        if student_problem(path) is None:  # else `verify` tells, and compares with what is there
            try:
                job = round_job(config, teacher_digest, round_)
            except UserError:  # without its shards it cannot be the same
                break
            if not is_trained(job):
                break
        students[round_] = digest_file(path)
    return students
