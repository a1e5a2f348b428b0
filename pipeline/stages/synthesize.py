"""Rounds: make shards, train a student on all there is, make the next shards against it."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.config.schema import Config
from pipeline.dataset.lock import locked
from pipeline.dataset.plan import plan_of
from pipeline.distillation.job import distill, is_trained
from pipeline.errors import UserError
from pipeline.execution.runner import Runner
from pipeline.storage import digest_file, listing, location, remove
from pipeline.synthesis.check import load_checked_teacher
from pipeline.synthesis.finalize import claim, prune, write_dataset_files
from pipeline.synthesis.job import Competitor, Made, ShardJob
from pipeline.synthesis.make_shard import make_shard
from pipeline.synthesis.round_students import round_job
from pipeline.synthesis.shard_states import survey
from pipeline.teachers.teacher import Teacher


def synthesize(config: Config, run: Runner, only: range | None = None) -> list[Made]:
    """Bring the dataset to what ``config`` says, making just what is missing or stale.

    Args:
        run: how the jobs run (see :mod:`pipeline.execution.runner`).
        only: make no shard outside this range, and leave the dataset-level files to
            :func:`finalize`: other ranges may be at work.

    Returns:
        What was made by this call.

    Raises:
        UserError: before any work, if something in ``config`` cannot be.
    """
    loaded = load_checked_teacher(config, "dataset", "reports")
    if only is not None and only.start >= len(plan_of(config)):
        raise UserError(
            f"--shards {only.start}:{only.stop}: the plan ends at {len(plan_of(config))}"
        )
    with locked(location(config.paths.dataset), "paths.dataset", shared=only is not None):
        return _rounds(config, loaded, run, only)


def finalize(config: Config) -> None:
    """Write the dataset-level files, once all shards are there, whoever made them.

    Raises:
        UserError: shards are missing or stale.
    """
    loaded = load_checked_teacher(config, "dataset", "reports")
    with locked(location(config.paths.dataset), "paths.dataset"):
        write_dataset_files(config, loaded)


def _rounds(config: Config, loaded: Teacher, run: Runner, only: range | None) -> list[Made]:
    layout, root = plan_of(config), location(config.paths.dataset)
    files = listing(root)
    claim(root, files)
    if only is None:
        prune(config, files)
    made: list[Made] = []
    for round_ in range(config.adaptive.rounds + 1):
        competitor = _competitor(config, loaded.digest, round_, run) if round_ else None
        numbers = layout.of_round(round_)
        last = round_ == config.adaptive.rounds or (only is not None and only.stop <= numbers.stop)
        if only is not None and last:
            numbers = range(max(only.start, numbers.start), min(only.stop, numbers.stop))
        missing = missing_jobs(config, loaded.digest, round_, competitor, numbers)
        todo = [job for job in missing if only is None or job.number in only]
        if todo:
            made += run(make_shard, todo, f"round {round_}")
        if last:
            break
        if len(todo) < len(missing):
            raise UserError(
                f"round {round_ + 1} competes with a student of all shards before it, and "
                f"{len(missing) - len(todo)} of round {round_} are missing: make those first"
            )
    if only is None:
        write_dataset_files(config, loaded)
    return made


def missing_jobs(
    config: Config,
    teacher_digest: str,
    round_: int,
    competitor: Competitor | None,
    numbers: Iterable[int],
) -> list[ShardJob]:
    """A job for each shard of ``numbers``, which are of ``round_``, that is missing or stale."""
    students = {round_: competitor.sha256} if competitor else {}
    return [
        ShardJob(config, found.shard.number, found.spec, competitor, len(found.shard.labels))
        for found in survey(config, teacher_digest, numbers, students=students)
        if found.state != "complete"
    ]


def _competitor(config: Config, teacher_digest: str, round_: int, run: Runner) -> Competitor:
    """The round's student, trained where it is not yet."""
    job = round_job(config, teacher_digest, round_)
    if not is_trained(job):
        run(distill, [job], f"student of round {round_}")
    else:
        remove(job.checkpoint)  # of a run to other parameters that was stopped
    return Competitor(job.output, digest_file(job.output))
