"""``distill``, and the students that it returns."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.api.in_process import unchanged_process
from pipeline.config.schema import Config
from pipeline.evaluation.held_out import held_out_agreement
from pipeline.execution.runner import open_runner
from pipeline.reports.files import report_distillation
from pipeline.reports.pictures import read_log
from pipeline.stages.distill import distill_students
from pipeline.stages.final_students import STUDENT, weights_path
from pipeline.storage import Location
from pipeline.synthesis.check import load_checked_teacher


@dataclass(frozen=True, slots=True)
class Student:
    """A trained student: its name, its weights file, and the last row of its log.

    ``log`` has ``step``, ``loss``, ``agreement`` (with the teacher) and ``accuracy`` (against the
    synthetic labels).
    """

    name: str
    weights: Location
    log: dict[str, float]


def distill(params: Config, *, keep: bool = False) -> list[Student]:
    """Train the students that are missing or stale, and return all of them.

    Args:
        params: the parameters of :func:`load_params`, whose dataset is complete.
        keep: refuse to replace students that other parameters made.

    Returns:
        A student for each of ``distillation.seeds``, and last those of the baselines that
        ``distillation.noise_baseline`` and ``procedural_baseline`` ask for.

    Raises:
        UserError: the dataset is incomplete, the student does not fit the teacher, or ``keep``
            protects a student.
    """
    with unchanged_process():
        teacher = load_checked_teacher(params)
        outputs = ("dataset", "students")
        with open_runner(params, params.distillation.threads, None, outputs) as run:
            trained = distill_students(params, teacher, run, keep)
            held_out = held_out_agreement(params, teacher, run)
        report_distillation(params, trained, held_out)
    seeds = params.distillation.seeds
    wanted = [(STUDENT, seed) for seed in seeds]
    wanted += [(kind, seeds[0]) for kind in params.distillation.baselines]
    paths = [weights_path(params, kind, seed) for kind, seed in wanted]
    return [Student(path.stem, path, read_log(path.with_suffix(".csv"))[-1]) for path in paths]
