"""The final students: one job a seed, on the whole dataset, and the noise baseline beside them."""

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
from pipeline.storage import Location, check_writable, exists, listing, location, remove, remove_all
from pipeline.synthesis.check import check_student
from pipeline.synthesis.shard_states import check_complete, shard_states
from pipeline.teachers.teacher import Teacher

log = logging.getLogger(__name__)
STUDENT, NOISE = "student", "noise"
_STUDENT_FILE = re.compile(r"((?:student|noise)-\d+)\.(?:safetensors|json|csv|checkpoint)")


def distill_students(config: Config, teacher: Teacher, run: Runner) -> list[dict[str, float]]:
    """Train every configured student that is not there yet; the last log row of each made now.

    Raises:
        UserError: before training, if the dataset is incomplete or the student does not fit.
    """
    check_distillation(config, teacher)
    directory = location(config.paths.students)
    with contextlib.ExitStack() as held:
        if is_first():  # no other run makes all shards, or these students, meanwhile
            held.enter_context(reading(location(config.paths.dataset), "paths.dataset"))
            held.enter_context(locked(directory, "paths.students"))
        check_complete(shard_states(config, teacher.digest))
        jobs = ours = student_jobs(config, teacher)
        if config.distillation.noise_baseline:
            noise = noise_config(config)
            from_first(
                lambda: synthesize(
                    noise, lambda work, jobs, text: run(work, jobs, f"noise, {text}")
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
    """What can be wrong with the students before there is a dataset.

    Raises:
        UserError: the student does not fit, there are fewer images than a batch, or torchrun's
            processes cannot share one.
    """
    check_student(config, teacher, "distillation", config.distillation)
    for name in ("students", "reports"):
        check_writable(location(getattr(config.paths, name)), f"paths.{name}")
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
    """A job for each of ``distillation.seeds``."""
    return _jobs(config, teacher, STUDENT, config.distillation.seeds)


def noise_config(config: Config) -> Config:
    """The same plan without one optimisation step: images are clamped white noise."""
    dataset = location(config.paths.dataset)
    objective = config.synthesis.objective.model_copy(update={"start": "white"})
    update = {"iterations": 0, "objective": objective, "images": len(plan_of(config).labels)}
    # Noise is not chosen among, nor held to anything.
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
    """Runs of shard ranges share the dataset with those who read it: what they changed meanwhile,
    these students have seen before and after."""
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
            f"paths.dataset {dataset.root} was changed while students learnt from it: run "
            "synthesize, then run this command again"
        )


def _todo(directory: Location, jobs: list[DistillJob]) -> list[DistillJob]:
    _remove_others(directory, jobs)
    todo = []
    for job in jobs:
        if is_trained(job):
            remove(job.checkpoint)  # of a run to other parameters that was stopped
        else:
            todo.append(job)
    return todo


def warn_of_others(config: Config, teacher: Teacher) -> None:
    """Say of a student that is about to be looked at if it is not the one that `distill` would
    make today."""
    try:
        jobs = student_jobs(config, teacher)
    except UserError:  # the dataset lies elsewhere: nobody can tell
        return
    for job in jobs:
        if exists(job.output) and not is_trained(job):
            log.warning(
                "%s is of other parameters, another dataset or version: `distill` makes it anew",
                job.output,
            )


def _remove_others(directory: Location, jobs: list[DistillJob]) -> None:
    """Students of seeds that are no longer asked for."""
    names = {job.name for job in jobs}
    matches = [(name, _STUDENT_FILE.fullmatch(name)) for name in listing(directory)]
    remove_all(directory, [name for name, match in matches if match and match[1] not in names])
