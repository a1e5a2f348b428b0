"""Train the final students: one for each seed, and optionally a noise baseline."""

from __future__ import annotations

import contextlib
import logging
import re

from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.lock import locked, reading
from pipeline.dataset.plan import plan_of
from pipeline.distillation.augmentation import GROUP
from pipeline.distillation.job import DistillJob, distill, is_trained
from pipeline.errors import TryAgainError, UserError
from pipeline.execution.runner import Runner
from pipeline.execution.torchrun import from_first, is_first, own_share
from pipeline.stages.synthesize import synthesize
from pipeline.storage import Location, exists, listing, location, remove, remove_all
from pipeline.synthesis.check import check_outputs, check_student
from pipeline.synthesis.shard_states import check_complete, shard_states
from pipeline.teachers.teacher import Teacher

log = logging.getLogger(__name__)
STUDENT, NOISE = "student", "noise"
_STUDENT_FILE = re.compile(r"((?:student|noise)-\d+)\.(?:safetensors|json|csv|checkpoint)")


def distill_students(config: Config, teacher: Teacher, run: Runner) -> list[dict[str, float]]:
    """Train the students that are missing or stale.

    Args:
        config: The parameters.
        teacher: The teacher of ``config``, from
            :func:`pipeline.synthesis.check.load_checked_teacher`.
        run: Runs the jobs (see :mod:`pipeline.execution.runner`).

    Returns:
        The last row of the log of each student that this call trained.

    Raises:
        UserError: Before training, if the dataset is incomplete or the student does not fit.
        TryAgainError: Another run changed the dataset during the training.
    """
    check_distillation(config, teacher)
    directory = location(config.paths.students)
    with contextlib.ExitStack() as held:
        if is_first():  # until the end no other run may replace the dataset or these students
            held.enter_context(reading(location(config.paths.dataset), "paths.dataset"))
            held.enter_context(locked(directory, "paths.students"))
        check_complete(shard_states(config, teacher.digest))
        jobs = ours = student_jobs(config, teacher)
        if config.distillation.noise_baseline:
            noise = noise_config(config)
            from_first(
                lambda: synthesize(
                    noise, teacher, lambda work, jobs, text: run(work, jobs, f"noise, {text}")
                )
            )
            if is_first():
                held.enter_context(reading(location(noise.paths.dataset), "paths.dataset"))
            jobs = ours + _jobs(noise, teacher, NOISE, config.distillation.seeds[:1])
        todo = from_first(lambda: _todo(directory, jobs))
        if not todo:
            return []
        try:
            return run(distill, todo, "distillation")
        finally:
            if is_first():
                _refuse_changed(config, [job for job in todo if job in ours])


def check_distillation(config: Config, teacher: Teacher) -> None:
    """Check what can be wrong with the training, even before there is a dataset.

    Raises:
        UserError: The student does not fit, a path is not writable, the dataset has fewer images
            than a batch, or the processes of torchrun cannot share a batch.
    """
    check_student(config, teacher, "distillation", config.distillation)
    check_outputs(config, "students", "reports")
    images, batch = len(plan_of(config).labels), config.distillation.batch_size
    if batch > images:
        raise UserError(f"distillation.batch_size is {batch}, but the dataset has {images} images")
    processes = own_share().of
    if processes > 1 and batch % (GROUP * processes):
        raise UserError(
            f"distillation.batch_size is {batch}, which {processes} processes cannot share: "
            f"make it a multiple of {GROUP * processes} (images mix in groups of {GROUP})"
        )


def student_jobs(config: Config, teacher: Teacher) -> list[DistillJob]:
    """One job for each of ``distillation.seeds``."""
    return _jobs(config, teacher, STUDENT, config.distillation.seeds)


def noise_config(config: Config) -> Config:
    """The parameters of the noise baseline: the same plan, but no iteration on white noise."""
    dataset = location(config.paths.dataset)
    objective = config.synthesis.objective.model_copy(update={"start": "white"})
    update = {"iterations": 0, "objective": objective, "images": len(plan_of(config).labels)}
    # All noise images are kept: no rule applies to them.
    update |= {"images_per_class": None, "keep": 1.0}
    update |= {"min_confidence": 0.0, "confirmed": False, "max_similarity": None}
    return config.model_copy(
        update={
            "synthesis": config.synthesis.model_copy(update=update),
            "adaptive": config.adaptive.model_copy(update={"rounds": 0}),
            "paths": config.paths.model_copy(
                update={"dataset": str(dataset.with_name(f"{dataset.name}-noise"))}
            ),
        }
    )


def weights_path(config: Config, kind: str, seed: int) -> Location:
    """The weights file of a student; ``kind`` is ``STUDENT`` or ``NOISE``."""
    return location(config.paths.students) / f"{kind}-{seed}.safetensors"


def _jobs(config: Config, teacher: Teacher, kind: str, seeds: tuple[int, ...]) -> list[DistillJob]:
    dataset = Dataset.planned(config)
    digest = dataset.digest(range(len(dataset.plan)))
    return [
        DistillJob(
            name=f"{kind}-{seed}",
            teacher=config.teacher,
            teacher_digest=teacher.digest,
            student=config.student,
            training=config.distillation,
            shards=dataset.paths.tars,
            dataset=digest,
            seed=seed,
            output=weights_path(config, kind, seed),
        )
        for seed in seeds
    ]


def _refuse_changed(config: Config, jobs: list[DistillJob]) -> None:
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
            remove(job.checkpoint)
        raise TryAgainError(
            f"paths.dataset {dataset.root} was changed while students learnt from it: complete "
            "it with synthesize, then run this command again"
        )


def _todo(directory: Location, jobs: list[DistillJob]) -> list[DistillJob]:
    _remove_others(directory, jobs)
    todo = []
    for job in jobs:
        if is_trained(job):
            remove(job.checkpoint)  # of a stopped run with other parameters
        else:
            todo.append(job)
    return todo


def warn_of_others(config: Config, teacher: Teacher) -> None:
    """Warn about students that `distill` would train again, because they are stale."""
    try:
        jobs = student_jobs(config, teacher)
    except UserError:  # the dataset is not here, so the spec is unknown
        return
    for job in jobs:
        if exists(job.output) and not is_trained(job):
            log.warning(
                "%s is stale (other parameters, dataset or version): `distill` trains it again",
                job.output,
            )


def _remove_others(directory: Location, jobs: list[DistillJob]) -> None:
    """Remove the students of seeds that the parameters no longer name."""
    names = {job.name for job in jobs}
    matches = [(name, _STUDENT_FILE.fullmatch(name)) for name in listing(directory)]
    remove_all(directory, [name for name, match in matches if match and match[1] not in names])
