"""Train the final students: one for each seed, and one for each baseline."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial

from pipeline.config.schema import Config
from pipeline.distillation.train_student import distill
from pipeline.execution.runner import Runner
from pipeline.execution.torchrun import from_first, is_first
from pipeline.stages.baselines import baseline_configs, make_baseline
from pipeline.stages.distillation_check import check_distillation
from pipeline.stages.final_students import (
    announce_retraining,
    jobs_of,
    refuse_changed,
    student_jobs,
    student_names,
    untrained,
)
from pipeline.storage import location
from pipeline.synthesis.claim import held, reading_dataset
from pipeline.synthesis.shard_states import check_complete, survey
from pipeline.synthesis.staleness import describe_state
from pipeline.teachers.teacher import Teacher


def distill_students(
    config: Config, teacher: Teacher, run: Runner, keep: bool = False
) -> list[dict[str, float]]:
    """Train the students that are missing or stale.

    Args:
        config: The parameters.
        teacher: The teacher of ``config``, from
            :func:`pipeline.synthesis.check.load_checked_teacher`.
        run: Runs the jobs (see :mod:`pipeline.execution.runner`).
        keep: Refuse to replace students that other parameters made.

    Returns:
        The last row of the log of each student that this call trained.

    Raises:
        UserError: Before training, if the dataset is incomplete, the student does not fit, or
            ``keep`` protects a student.
        TryAgainError: Another run changed the dataset during the training.
    """
    check_distillation(config, teacher)
    directory = location(config.paths.students)
    lock = None
    with contextlib.ExitStack() as entered:
        if is_first():  # until the end no other run may replace the dataset or these students
            entered.enter_context(reading_dataset(config, teacher.digest))
        surveyed = survey(config, teacher.digest)
        check_complete({f.shard.number: describe_state(f, teacher.parts) for f in surveyed})
        if is_first():
            lock = entered.enter_context(held(config, "students"))
        jobs = ours = student_jobs(config, teacher)
        names = student_names(config)
        from_first(lambda: announce_retraining(directory, ours, names, keep))
        for kind, baseline in baseline_configs(config).items():
            from_first(partial(make_baseline, kind, baseline, teacher, run))
            if is_first():
                entered.enter_context(reading_dataset(baseline, teacher.digest))
            theirs = jobs_of(baseline, teacher, kind, config.distillation.seeds[:1])
            from_first(partial(announce_retraining, directory, theirs, names, keep))
            jobs = jobs + theirs
        todo = from_first(lambda: untrained(config, jobs))
        if not todo:
            return []
        try:
            return run(distill, [replace(job, lock=lock) for job in todo], "distillation")
        finally:
            if is_first():
                refuse_changed(config, [job for job in todo if job in ours])
