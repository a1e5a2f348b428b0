"""Repair a finished dataset: make damaged shards, students and index files again."""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.layout import Layout, dataset_names, student_name
from pipeline.dataset.odd_files import refuse_linked_folders, remove_odd_files
from pipeline.distillation.job import student_problem
from pipeline.execution.runner import Runner
from pipeline.stages.damaged_shards import damaged_shards
from pipeline.stages.synthesize import synthesize
from pipeline.storage import location, remove
from pipeline.synthesis.claim import held
from pipeline.teachers.teacher import Teacher


def repair(config: Config, teacher: Teacher, run: Runner) -> list[str]:
    """Make damaged shards, students and index files again, with the same bytes as before.

    A shard is damaged if ``verify`` finds a problem in it. Other shards keep their files, and so
    do files that do not belong to the dataset. A link in the place of a file is replaced by a
    file; the file that it points to is not changed.

    Args:
        config: all parameters.
        teacher: the teacher.
        run: how the jobs run (see :mod:`pipeline.execution.runner`).

    Returns:
        The names of the shards and students that were made again.

    Raises:
        UserError: another run works on the dataset, the folder holds other files, or a folder is
            a link or in the place of a file. Nothing was changed.
    """
    root, again = location(config.paths.dataset), []
    layout = Layout(root)
    refuse_linked_folders(root)
    with held(config, "dataset"):
        shards, rounds = len(Dataset.planned(config).plan), config.adaptive.rounds
        captions = config.synthesis.captions is not None
        remove_odd_files(root, dataset_names(shards, rounds, captions))
        for round_ in range(1, rounds + 1):
            path = layout.student(round_)
            if student_problem(path) is not None:
                remove(path.with_suffix(".json"))
                again.append(student_name(round_))
        for shard in damaged_shards(config, teacher):
            remove(layout.record(shard.number))
            again.append(f"shard {shard.name}")
    synthesize(config, teacher, run)
    return again
