"""The students of adaptive rounds, whose files lie inside the dataset."""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.layout import Layout
from pipeline.dataset.plan import derive_seed
from pipeline.distillation.job import DistillJob, is_trained, sealed_facts, student_problem
from pipeline.errors import UserError
from pipeline.storage import digest_file, digest_json, exists, location


def round_job(
    config: Config, teacher_digest: str, round_: int, digest: str | None = None
) -> DistillJob:
    """The job that trains the student that ``round_`` competes with.

    The student learns from the shards of all earlier rounds. It starts from the weights of the
    previous round's student, where there is one.

    Args:
        config: all parameters.
        teacher_digest: the digest of the teacher.
        round_: the round, from 1.
        digest: the digest of these shards; None takes it from their records.

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
        dataset=dataset.digest(numbers) if digest is None else digest,
        seed=derive_seed(config.synthesis.seed, round_),
        output=layout.student(round_),
        start=layout.student(round_ - 1) if round_ > 1 else None,
    )


def dataset_students(config: Config, teacher_digest: str) -> dict[int, str]:
    """The digest of the weights of each round's student, if today's parameters would train it so.

    A shard before it that has lost its record does not make the student another one.
    A student whose files are damaged counts with the weights that it has: the shards made against
    the undamaged one are then stale, and ``verify`` reports both.
    """
    layout, students = Layout(location(config.paths.dataset)), {}
    for round_ in range(1, config.adaptive.rounds + 1):
        path = layout.student(round_)
        if not exists(path):
            continue
        if student_problem(path) is None:
            if round_ > 1 and not exists(layout.student(round_ - 1)):
                break  # It started from a student that is missing.
            if not is_trained(_job_on_record(config, teacher_digest, round_)):
                break
        students[round_] = digest_file(path)
    return students


def remade_students(config: Config, teacher_digest: str) -> dict[int, str]:
    """The digest of each round's student after a run, as far as the records tell it.

    A run makes missing shards and damaged students again with the same bytes. So a student counts
    with the digest in its record, whether its weights and the shards before it exist or not.
    """
    layout, students = Layout(location(config.paths.dataset)), {}
    for round_ in range(1, config.adaptive.rounds + 1):
        facts = sealed_facts(layout.student(round_).with_suffix(".json"))
        start = layout.student(round_ - 1)
        if facts is None or (round_ > 1 and not exists(start)):
            break
        job = _job_on_record(config, teacher_digest, round_)
        if facts["spec_sha256"] != digest_json(job.spec()):
            break
        students[round_] = str(facts.get("sha256"))
    return students


def _job_on_record(config: Config, teacher_digest: str, round_: int) -> DistillJob:
    """The job of a round's student, which has a record.

    Where a shard that the student learnt from has no record, the digest of these shards is taken
    from the student's record: a run makes the missing shard again with the same bytes.
    """
    try:
        return round_job(config, teacher_digest, round_)
    except UserError:
        record = Layout(location(config.paths.dataset)).student(round_).with_suffix(".json")
        facts = sealed_facts(record) or {"spec": {}}
        return round_job(config, teacher_digest, round_, str(facts["spec"].get("dataset")))
