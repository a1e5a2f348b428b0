"""Repair a finished dataset: make damaged shards, students and index files again."""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.layout import Layout, shard_name, student_name
from pipeline.dataset.record_files import records_of
from pipeline.distillation.job import student_problem
from pipeline.execution.runner import Runner
from pipeline.stages.shard_problems import changed_files, read_shard
from pipeline.stages.synthesize import synthesize
from pipeline.storage import location, remove
from pipeline.synthesis.claim import held
from pipeline.teachers.teacher import Teacher


def repair(config: Config, teacher: Teacher, run: Runner) -> list[str]:
    """Make damaged shards, students and index files again, with the same bytes as before.

    Shards that are complete stay as they are, and so do files that do not belong to the dataset.

    Args:
        config: all parameters.
        run: how the jobs run (see :mod:`pipeline.execution.runner`).

    Returns:
        The names of the shards and students that were made again.

    Raises:
        UserError: another run works on the dataset, or the folder holds other files. Nothing was
            changed.
    """
    root, again = location(config.paths.dataset), []
    layout = Layout(root)
    with held(config, "dataset"):
        for round_ in range(1, config.adaptive.rounds + 1):
            path = layout.student(round_)
            if student_problem(path) is not None:
                remove(path.with_suffix(".json"))
                again.append(student_name(round_))
        numbers = range(len(Dataset.planned(config).plan))
        for number, record, _ in records_of(root, numbers):
            if record is None:  # synthesize replaces what lies there
                again.append(f"shard {shard_name(number)}")
            elif list(changed_files(record, read_shard(root, number))):
                remove(layout.record(number))
                again.append(f"shard {shard_name(number)}")
    synthesize(config, teacher, run)
    return again
