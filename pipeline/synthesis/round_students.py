"""The students of adaptive rounds, whose files lie inside the dataset."""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.layout import Layout
from pipeline.dataset.plan import derive_seed
from pipeline.distillation.job import DistillJob, is_trained, student_problem
from pipeline.errors import UserError
from pipeline.storage import digest_file, exists, location


def round_job(config: Config, teacher_digest: str, round_: int) -> DistillJob:
    """The job that trains the student that ``round_`` competes with.

    The student learns from the shards of all earlier rounds. It starts from the weights of the
    previous round's student, where there is one.

    Raises:
        UserError: the record of one of these shards is missing or was changed.
    """
    dataset = Dataset.planned(config)
    layout, numbers = Layout(dataset.root), range(dataset.plan.of_round(round_).start)
    return DistillJob(
        name=f"student-of-round-{round_}",
        teacher=config.teacher,
        teacher_digest=teacher_digest,
        student=config.student,
        training=config.adaptive.training.for_images(dataset.plan.bounds[numbers.stop - 1][2]),
        shards=dataset.tars(numbers),
        dataset=dataset.digest(numbers),
        seed=derive_seed(config.synthesis.seed, round_),
        output=layout.student(round_),
        start=layout.student(round_ - 1) if round_ > 1 else None,
    )


def dataset_students(config: Config, teacher_digest: str) -> dict[int, str]:
    """The digest of the weights of each round's student, if today's parameters would train it so.

    A student whose files are damaged counts with the weights that it has: the shards made against
    the undamaged one are then stale, and ``verify`` reports both.
    """
    layout, students = Layout(location(config.paths.dataset)), {}
    for round_ in range(1, config.adaptive.rounds + 1):
        path = layout.student(round_)
        if not exists(path):
            continue
        if student_problem(path) is None:
            try:
                job = round_job(config, teacher_digest, round_)
            except UserError:  # a shard is missing: the student cannot be the one of today's shards
                break
            if not is_trained(job):
                break
        students[round_] = digest_file(path)
    return students
