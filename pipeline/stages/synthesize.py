"""Make a dataset in rounds, and write its dataset-level files.

Between two rounds a student is trained on all shards made so far. The next round makes images on
which this student and the teacher disagree.
"""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.errors import UserError
from pipeline.execution.runner import Runner
from pipeline.stages.round_competitor import competitor_of
from pipeline.synthesis.check import check_outputs
from pipeline.synthesis.claim import claimed
from pipeline.synthesis.finalize import write_dataset_files
from pipeline.synthesis.job import Made
from pipeline.synthesis.make_shard import make_shard
from pipeline.synthesis.shard_states import missing_jobs
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
            :func:`~pipeline.stages.finalize.finalize`: other runs may be making other ranges.

    Returns:
        The shards that this call made.

    Raises:
        UserError: Before any work, if a path is not writable, a folder of the dataset is a link,
            another run holds the dataset, or ``only`` begins after the last shard.
    """
    check_outputs(config, "dataset", "reports")
    if only is not None and only.start >= len(plan_of(config)):
        raise UserError(
            f"--shards {only.start}:{only.stop}: the plan ends at {len(plan_of(config))}"
        )
    with claimed(config, shared=only is not None):
        return _rounds(config, teacher, run, only)


def _rounds(config: Config, teacher: Teacher, run: Runner, only: range | None) -> list[Made]:
    layout = plan_of(config)
    made: list[Made] = []
    for round_ in range(config.adaptive.rounds + 1):
        competitor = competitor_of(config, teacher.digest, round_, run) if round_ else None
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
