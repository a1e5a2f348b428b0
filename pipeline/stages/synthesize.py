"""Make a dataset in rounds, and write its index files.

Between two rounds a student is trained on all shards made so far. The next round makes images on
which this student and the teacher disagree.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from pipeline.config.schema import Config
from pipeline.dataset.held_lock import Lock
from pipeline.dataset.plan import plan_of
from pipeline.errors import UserError
from pipeline.execution.runner import Runner
from pipeline.stages.round_competitor import competitor_of
from pipeline.synthesis.claim import claimed
from pipeline.synthesis.finalize import write_dataset_files
from pipeline.synthesis.job import Made
from pipeline.synthesis.make_shard import make_shard
from pipeline.synthesis.shard_states import missing_jobs
from pipeline.teachers.teacher import Teacher

log = logging.getLogger(__name__)


def synthesize(
    config: Config,
    teacher: Teacher,
    run: Runner,
    only: range | None = None,
    keep: bool = False,
) -> list[Made]:
    """Make the shards that are missing or stale, and the index files.

    Args:
        config: The parameters.
        teacher: The teacher of ``config``, from
            :func:`pipeline.synthesis.check.load_checked_teacher`.
        run: Runs the jobs (see :mod:`pipeline.execution.runner`).
        only: Make only shards in this range, and leave the index files to
            :func:`~pipeline.stages.finalize.finalize`: other runs may be making other ranges.
        keep: Refuse to replace a dataset that other parameters made.

    Returns:
        The shards that this call made.

    Raises:
        UserError: Before any work, if a path is not writable or holds other files, a folder of
            the dataset is a link, another run holds the dataset, ``only`` begins after the last
            shard, or ``keep`` protects a dataset.
        TryAgainError: Another run took the lock of the dataset.
    """
    only = _planned(config, only)
    with claimed(config, teacher, only, keep) as lock:
        return _rounds(config, teacher, run, only, lock)


def _planned(config: Config, only: range | None) -> range | None:
    """The part of a shard range that the plan has."""
    shards = len(plan_of(config))
    if only is None or only.stop <= shards:
        return only
    text = f"--shards {only.start}:{only.stop}: the plan ends at {shards}"
    if only.start >= shards:
        raise UserError(f"{text}, so it has none of these: name shards from 0:{shards}")
    log.warning("%s, so this run looks at %d:%d only", text, only.start, shards)
    return range(only.start, shards)


def _rounds(
    config: Config, teacher: Teacher, run: Runner, only: range | None, lock: Lock
) -> list[Made]:
    layout = plan_of(config)
    made: list[Made] = []
    for round_ in range(config.adaptive.rounds + 1):
        competitor = competitor_of(config, teacher.digest, round_, run, lock) if round_ else None
        numbers = layout.of_round(round_)
        last = round_ == config.adaptive.rounds or (only is not None and only.stop <= numbers.stop)
        if only is not None and last:
            numbers = range(max(only.start, numbers.start), min(only.stop, numbers.stop))
        missing = missing_jobs(config, teacher.digest, round_, competitor, numbers)
        todo = [replace(job, lock=lock) for job in missing if only is None or job.number in only]
        if todo:
            made += run(make_shard, todo, f"round {round_}")
        if last:
            break
        if len(todo) < len(missing):
            raise UserError(
                f"round {round_ + 1} needs a student of all earlier shards, but "
                f"{len(missing) - len(todo)} shards of round {round_} are missing: make those first"
            )
    if only is None:
        lock.check()
        write_dataset_files(config, teacher)
    return made
