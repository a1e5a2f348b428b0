"""The state of every planned shard: complete, stale or missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config.schema import Config
from pipeline.dataset.layout import shard_name
from pipeline.dataset.plan import ShardPlan, plan_of
from pipeline.dataset.record_files import records_of
from pipeline.dataset.records import ShardRecord, is_current
from pipeline.errors import UserError
from pipeline.storage import Stat, listing, location
from pipeline.synthesis.job import Competitor, ShardJob
from pipeline.synthesis.round_students import dataset_students
from pipeline.synthesis.spec import round_spec, shard_spec

State = Literal["complete", "stale", "missing"]


@dataclass(frozen=True, slots=True)
class Found:
    """A planned shard and its state.

    Attributes:
        shard: its plan.
        spec: the spec that today's parameters give it.
        record: its record, or None where there is none or its bytes were changed.
        text: the bytes of the record's file; empty where there is none.
        state: ``complete`` if the shard was made to ``spec`` and its files have the recorded
            sizes; ``stale`` if it has a record that says otherwise; else ``missing``.
    """

    shard: ShardPlan
    spec: dict[str, Any]
    record: ShardRecord | None
    text: bytes
    state: State


def survey(
    config: Config,
    teacher_digest: str,
    numbers: Iterable[int] | None = None,
    files: Mapping[str, Stat] | None = None,
    students: Mapping[int, str] | None = None,
) -> Iterator[Found]:
    """Planned shards with their states, one at a time.

    Args:
        config: all parameters.
        teacher_digest: the digest of the teacher.
        numbers: the shards to look at, in this order; None for all.
        files: the listing of the dataset's folder, where known.
        students: the result of :func:`dataset_students`, where known.
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
    """Refuse to train on, or to publish, a dataset with missing or stale shards.

    Args:
        states: the state of each shard, in words.

    Raises:
        UserError: names the shards that are not complete.
    """
    if undone := [number for number, state in states.items() if state != "complete"]:
        raise UserError(
            f"{len(undone)} of {len(states)} shards are not complete ({ranges(undone)}), "
            f"the first {shard_name(undone[0])} ({states[undone[0]]}): run synthesize first"
        )


def ranges(numbers: Sequence[int], most: int = 8) -> str:
    """Shard numbers as text: ``000003, 000005-000007``, with ``...`` after ``most`` ranges."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [
        shard_name(first) if first == last else f"{shard_name(first)}-{shard_name(last)}"
        for first, last in runs[:most]
    ]
    return ", ".join(shown + ["..."] * (len(runs) > most))


def missing_jobs(
    config: Config,
    teacher_digest: str,
    round_: int,
    competitor: Competitor | None,
    numbers: Iterable[int],
) -> list[ShardJob]:
    """The jobs of the shards that are missing or stale.

    Args:
        config: The parameters.
        teacher_digest: The digest of the loaded teacher.
        round_: The round of the shards.
        competitor: The student of the round; None in round 0.
        numbers: The shards to look at, all of ``round_``.
    """
    students = {round_: competitor.sha256} if competitor else {}
    return [
        ShardJob(config, found.shard.number, found.spec, competitor, len(found.shard.labels))
        for found in survey(config, teacher_digest, numbers, students=students)
        if found.state != "complete"
    ]
