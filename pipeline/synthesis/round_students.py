"""The students of adaptive rounds, which lie inside the dataset."""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.dataset.plan import derive_seed, plan_of
from pipeline.dataset.records import dataset_digest
from pipeline.distillation.job import DistillJob, is_trained, student_problem
from pipeline.errors import UserError
from pipeline.storage import Location, digest_file, exists, location


def student_path(root: Location, round_: int) -> Location:
    """The weights of the student that ``round_`` competes with."""
    return root / "students" / f"{round_:06d}.safetensors"


def round_job(config: Config, teacher_digest: str, round_: int) -> DistillJob:
    """The student of all rounds before, trained on their shards, on from its predecessor.

    Raises:
        UserError: one of these shards is missing.
    """
    root = location(config.paths.dataset)
    numbers = range(plan_of(config).of_round(round_).start)
    return DistillJob(
        name=f"student-of-round-{round_}",
        teacher=config.teacher,
        teacher_digest=teacher_digest,
        student=config.student,
        training=config.adaptive.training,
        shards=tuple(root / "train" / f"{number:06d}.tar" for number in numbers),
        dataset=dataset_digest(root, numbers),
        seed=derive_seed(config.synthesis.seed, round_),
        output=student_path(root, round_),
        start=student_path(root, round_ - 1) if round_ > 1 else None,
    )


def dataset_students(config: Config, teacher_digest: str) -> dict[int, str]:
    """Of each adaptive round whose student is there, and was trained as it would be today: the
    digest of its weights."""
    root, students = location(config.paths.dataset), {}
    for round_ in range(1, config.adaptive.rounds + 1):
        path = student_path(root, round_)
        if not exists(path):
            continue
        if student_problem(path) is None:  # else `verify` tells, and compares with what is there
            try:
                job = round_job(config, teacher_digest, round_)
            except UserError:  # without its shards it cannot be the same
                break
            if not is_trained(job):
                break
        students[round_] = digest_file(path)
    return students
