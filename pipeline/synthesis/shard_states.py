"""The state of every planned shard: complete, stale or missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config.schema import Config
from pipeline.dataset.plan import ShardPlan, plan_of
from pipeline.dataset.records import ShardRecord, is_current, records_of
from pipeline.errors import UserError
from pipeline.storage import Stat, listing, location
from pipeline.synthesis.round_students import dataset_students
from pipeline.synthesis.spec import round_spec, shard_spec

State = Literal["complete", "stale", "missing"]


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
