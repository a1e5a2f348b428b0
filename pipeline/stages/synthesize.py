"""Make a dataset in rounds, and write its dataset-level files.

Between two rounds a student is trained on all shards made so far. The next round makes images on
which this student and the teacher disagree.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.config.schema import Config
from pipeline.dataset.lock import locked
from pipeline.dataset.plan import plan_of
from pipeline.distillation.job import distill, is_trained
from pipeline.errors import UserError
from pipeline.execution.runner import Runner
from pipeline.storage import digest_file, listing, location, remove
from pipeline.synthesis.check import check_outputs
from pipeline.synthesis.finalize import claim, prune, write_dataset_files
from pipeline.synthesis.job import Competitor, Made, ShardJob
from pipeline.synthesis.make_shard import make_shard
from pipeline.synthesis.round_students import round_job
from pipeline.synthesis.shard_states import survey
from pipeline.teachers.teacher import Teacher


def synthesize(
    config: Config, teacher: Teacher, run: Runner, only: range | None = None
) -> list[Made]:
    """Make the shards that are missing or stale, and the dataset-level files.

    Args:
        config: The parameters.
        teacher: The teacher of ``config``, from
            :func:`pipeline.synthesis.check.load_checked_teacher`.
        run: Runs the jobs (see :mod:`pipeline.execution.runner`).
        only: Make only shards in this range, and leave the dataset-level files to
            :func:`finalize`, because other runs may be making other ranges.

    Returns:
        The shards that this call made.

    Raises:
        UserError: Before any work, if a path is not writable, another run holds the dataset, or
            ``only`` begins after the last shard.
    """
    check_outputs(config, "dataset", "reports")
    if only is not None and only.start >= len(plan_of(config)):
        raise UserError(
            f"--shards {only.start}:{only.stop}: the plan ends at {len(plan_of(config))}"
        )
    with locked(location(config.paths.dataset), "paths.dataset", shared=only is not None):
        return _rounds(config, teacher, run, only)


def finalize(config: Config, teacher: Teacher) -> None:
    """Write the dataset-level files of a dataset that was made in ranges of shards.

    Args:
        config: The parameters.
        teacher: The teacher of ``config``.

    Raises:
        UserError: Shards are missing or stale.
    """
    check_outputs(config, "dataset", "reports")
    with locked(location(config.paths.dataset), "paths.dataset"):
        write_dataset_files(config, teacher)


def _rounds(config: Config, teacher: Teacher, run: Runner, only: range | None) -> list[Made]:
    layout, root = plan_of(config), location(config.paths.dataset)
    files = listing(root)
    claim(root, files)
    if only is None:
        prune(config, files)
    made: list[Made] = []
    for round_ in range(config.adaptive.rounds + 1):
        competitor = _competitor(config, teacher.digest, round_, run) if round_ else None
        numbers = layout.of_round(round_)
        last = round_ == config.adaptive.rounds or (only is not None and only.stop <= numbers.stop)
        if only is not None and last:
            numbers = range(max(only.start, numbers.start), min(only.stop, numbers.stop))
        missing = missing_jobs(config, teacher.digest, round_, competitor, numbers)
        todo = [job for job in missing if only is None or job.number in only]
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
        write_dataset_files(config, teacher)
    return made


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


def _competitor(config: Config, teacher_digest: str, round_: int, run: Runner) -> Competitor:
    """The student of the round, trained now if it is missing or stale."""
    job = round_job(config, teacher_digest, round_)
    if not is_trained(job):
        run(distill, [job], f"student of round {round_}")
    else:
        remove(job.checkpoint)  # of a stopped run with other parameters
    return Competitor(job.output, digest_file(job.output))
