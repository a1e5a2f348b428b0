"""The final students of a run: their jobs and their files."""

from __future__ import annotations

import logging
import re

from pipeline.config.distillation import NOISE, PROCEDURAL
from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.layout import is_leftover
from pipeline.distillation.job import (
    DistillJob,
    is_trained,
    proven_files,
    remove_checkpoint,
    sealed_facts,
    student_problem,
)
from pipeline.errors import TryAgainError, UserError
from pipeline.storage import (
    Location,
    digest_json,
    exists,
    listing,
    location,
    remove,
    remove_all,
)
from pipeline.synthesis.outputs import claim_output
from pipeline.synthesis.spec import changed_keys
from pipeline.teachers.teacher import Teacher
from pipeline.tracking.loggers import clear_live_logs, tracking_of

log = logging.getLogger(__name__)
STUDENT = "student"  # a student of the dataset itself; the others have the name of a baseline
_STUDENT_FILE = re.compile(
    rf"((?:{STUDENT}|{NOISE}|{PROCEDURAL})-\d+)\.(?:safetensors|json|csv|checkpoint)"
)


def student_jobs(config: Config, teacher: Teacher) -> list[DistillJob]:
    """One job for each of ``distillation.seeds``."""
    return jobs_of(config, teacher, STUDENT, config.distillation.seeds)


def student_names(config: Config) -> set[str]:
    """The names of all students that the parameters ask for."""
    seeds = config.distillation.seeds
    baselines = {f"{kind}-{seeds[0]}" for kind in config.distillation.baselines}
    return {f"{STUDENT}-{seed}" for seed in seeds} | baselines


def weights_path(config: Config, kind: str, seed: int) -> Location:
    """The weights file of a student; ``kind`` is ``STUDENT`` or a baseline's name."""
    return location(config.paths.students) / f"{kind}-{seed}.safetensors"


def jobs_of(
    config: Config, teacher: Teacher, kind: str, seeds: tuple[int, ...]
) -> list[DistillJob]:
    """One job for each of ``seeds``; ``kind`` is ``STUDENT`` or a baseline's name."""
    dataset = Dataset.planned(config)
    digest = dataset.digest(range(len(dataset.plan)))
    training = config.distillation.for_images(len(dataset.plan.labels))
    return [
        DistillJob(
            name=f"{kind}-{seed}",
            teacher=config.teacher,
            teacher_digest=teacher.digest,
            student=config.student,
            training=training,
            shards=dataset.paths.tars,
            dataset=digest,
            seed=seed,
            output=weights_path(config, kind, seed),
            tracking=tracking_of(config, f"{kind}-{seed}"),
        )
        for seed in seeds
    ]


def warn_of_others(config: Config, teacher: Teacher) -> None:
    """Warn about students that `distill` would train again, because they are stale.

    Damaged students are left out: who loads them reports the damage.
    """
    try:
        jobs = student_jobs(config, teacher)
    except UserError:  # the dataset is not here, so the spec is unknown
        return
    for job in jobs:
        intact = exists(job.output) and student_problem(job.output) is None
        if intact and not is_trained(job):
            log.warning(
                "%s is stale (other parameters, dataset or version): `distill` trains it again",
                job.output,
            )


def announce_retraining(
    directory: Location, jobs: list[DistillJob], names: set[str], keep: bool
) -> None:
    """Warn about students that this run trains again, because other parameters made them.

    Args:
        directory: The folder of the students.
        jobs: The jobs to look at.
        names: The names of all students that the parameters ask for. Others are deleted.
        keep: Refuse instead of warning.

    Raises:
        UserError: ``keep`` is set and there are such students.
    """
    losses = []
    for job in jobs:
        facts = sealed_facts(job.record)
        if facts is not None and (keys := changed_keys(facts["spec"], job.spec())):
            losses.append(f"{job.name} is trained again ({', '.join(keys)} changed)")
    losses += [
        f"{name} is deleted (the parameters do not name it)"
        for name in _students(directory)
        if name not in names and proven_files(directory / f"{name}.safetensors")
    ]
    if not losses:
        return
    text = "; ".join(losses)
    if keep:
        version = digest_json([job.spec() for job in jobs])[:8]
        raise UserError(
            f"paths.students {directory} holds students of other parameters, which --keep "
            f"protects. Without it {text}. Name a new directory: --set "
            f"paths.students={directory}-{version}"
        )
    log.warning("paths.students %s holds students of other parameters: %s", directory, text)


def refuse_changed(config: Config, jobs: list[DistillJob]) -> None:
    """Discard students whose shards changed during their training.

    A run of a shard range may write while students read: such students saw old and new shards.
    """
    dataset = Dataset.planned(config)
    try:
        now = dataset.digest(range(len(dataset.plan)))
    except UserError:  # a shard is being made again
        now = ""
    if any(job.dataset != now for job in jobs):
        for job in jobs:
            remove(job.record)
            remove_checkpoint(job.checkpoint)
        raise TryAgainError(
            f"paths.dataset {dataset.root} was changed while students learnt from it: complete "
            "it with synthesize, then run this command again"
        )


def untrained(config: Config, jobs: list[DistillJob]) -> list[DistillJob]:
    """The jobs whose students are missing or stale; removes the files of other students."""
    _remove_others(location(config.paths.students), jobs)
    todo = []
    for job in jobs:
        if is_trained(job):
            remove_checkpoint(job.checkpoint)  # of a stopped run with other parameters
        else:
            todo.append(job)
    claim_output(config, "reports")
    clear_live_logs(config, {job.name for job in jobs} - {job.name for job in todo})
    return todo


def _remove_others(directory: Location, jobs: list[DistillJob]) -> None:
    """Remove the students of seeds that the parameters no longer name, and temporary files.

    A file stays if no record of a student names its digest: a user may have put it there.
    """
    leftovers = [name for name in listing(directory) if is_leftover(name) and "/" not in name]
    remove_all(directory, leftovers)
    names = {job.name for job in jobs}
    for student in _students(directory):
        if student not in names:
            for path in proven_files(directory / f"{student}.safetensors"):
                remove(path)


def _students(directory: Location) -> list[str]:
    """The names of all students of which a file lies in the folder."""
    return sorted({m[1] for name in listing(directory) if (m := _STUDENT_FILE.fullmatch(name))})
