"""The job that trains one student on shards, and the files that it writes."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from pipeline.config.distillation import DistillationConfig
from pipeline.config.student import StudentConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.dataset.stream import ImageStream
from pipeline.device.seeding import seed_all
from pipeline.device.threads import use_threads
from pipeline.distillation.loop import Checkpoint, train
from pipeline.distillation.step import Training
from pipeline.execution.torchrun import is_first, own_share
from pipeline.source_digest import source_digest, source_files
from pipeline.storage import (
    Location,
    digest_file,
    digest_json,
    exists,
    json_bytes,
    read_bytes,
    remove,
    write_bytes,
    write_json,
)
from pipeline.teachers.networks import (
    build_network,
    factory_digest,
    load_weights,
    public_source,
)
from pipeline.teachers.teacher import cached_teacher

KEEP_BYTES = 1 << 30  # Pixels that the stream keeps in memory, in bytes.

# The folders and files whose code decides the weights of a student. A change in one of them makes
# every student stale.
STUDENT_CODE = (
    "dataset",
    "device",
    "distillation",
    "execution/torchrun.py",
    "local_files.py",
    "objective",
    "source_digest.py",
    "storage.py",
    "teachers",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillJob:
    """Everything that the training of one student needs.

    Attributes:
        name: Name of the student, for messages.
        teacher: The teacher, which a worker loads by itself.
        teacher_digest: Digest of the teacher's weights and code.
        student: The network to train.
        training: How to train it.
        shards: Tars to learn from.
        dataset: Digest of the shards' contents.
        seed: Seed of the student's first weights, of the order of images and of augmentation.
        output: The ``.safetensors`` file to write.
        start: Weights to start from; None for random ones.
    """

    name: str
    teacher: TeacherConfig
    teacher_digest: str
    student: StudentConfig
    training: DistillationConfig
    shards: tuple[Location, ...]
    dataset: str
    seed: int
    output: Location
    start: Location | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def images(self) -> int:
        """Number of images that will pass through the student."""
        return self.training.steps * self.training.batch_size

    @property
    def record(self) -> Location:
        """The file with the spec and the digests of the student's files."""
        return self.output.with_suffix(".json")

    @property
    def log(self) -> Location:
        """The file with the loss and accuracy over the steps."""
        return self.output.with_suffix(".csv")

    @property
    def checkpoint(self) -> Location:
        """The file that an interrupted training continues from."""
        return self.output.with_suffix(".checkpoint")

    def spec(self) -> dict[str, Any]:
        """Return everything that determines the trained weights, as JSON values."""
        return {
            "teacher": self.teacher_digest,
            "student": [public_source(self.student.source), self.student.arguments],
            "training": self.training.model_dump(
                mode="json",
                include=set(DistillationConfig.model_fields),
                exclude={"checkpoint_every"},
            ),
            "dataset": self.dataset,
            "seed": self.seed,
            "start": digest_file(self.start) if self.start else None,
            "code": [
                source_digest(source_files(STUDENT_CODE)),
                factory_digest(self.student.source, "student"),
            ],
            "torch": torch.__version__.partition("+")[0],
        }


def is_trained(job: DistillJob) -> bool:
    """Return whether the student's files are intact and of the job's present spec."""
    return student_problem(job.output) is None and (
        json.loads(read_bytes(job.record))["spec_sha256"] == digest_json(job.spec())
    )


def student_problem(output: Location) -> str | None:
    """Find what is wrong with the files of a trained student, whatever its spec.

    Args:
        output: The student's ``.safetensors`` file.

    Returns:
        The problem in a few words, or None if all files are intact.
    """
    record, log = output.with_suffix(".json"), output.with_suffix(".csv")
    try:
        text = read_bytes(record)
        facts = json.loads(text)
        sealed = text == json_bytes(facts) and facts["spec_sha256"] == digest_json(facts["spec"])
        if not sealed:
            return f"{record.name} was changed"
        for path, name in ((output, "sha256"), (log, "log_sha256")):
            if not exists(path):
                return f"{path.name} is missing"
            if digest_file(path) != facts[name]:
                return f"{path.name} was changed"
    except FileNotFoundError:
        return f"{record.name} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{record.name} cannot be read"
    return None


def distill(job: DistillJob, device: str, report: Callable[[float], object]) -> dict[str, float]:
    """Train one student and write its files, from its checkpoint if there is one.

    Where torchrun started several processes, all of them call this function together. The first
    process writes the files.

    Args:
        job: The student to train.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        report: Called with the number of images after each step.

    Returns:
        The last row of the log, and ``seconds``, the time that this call took.

    Raises:
        UserError: The device has too little memory for a batch, or the parameters do not fit the
            networks.
        FloatingPointError: The loss is infinite or NaN.

    Example::

        row = distill(job, "cpu", report=lambda images: None)
        row["accuracy"]  # share of the last batch that the student assigns to the intended class
    """
    started = time.perf_counter()
    use_threads(job.training.threads)
    teacher = cached_teacher(job.teacher.model_dump_json(), job.teacher_digest, device)
    spec_sha256 = digest_json(job.spec())
    seed_all(job.seed)
    student = build_network(job.student.source, job.student.arguments, "student")
    if job.start:
        load_weights(student, job.start, "student")
    training = Training(teacher, student, job.training, job.seed)
    stream = ImageStream(
        job.shards,
        job.training.batch_size,
        job.training.shuffle,
        job.seed,
        share=own_share(),
        keep=KEEP_BYTES // math.prod(teacher.shape),
    )
    checkpoint = Checkpoint(job.checkpoint, spec_sha256)
    log = train(job.name, training, stream, job.training, checkpoint, report)
    if is_first():
        _publish(job, spec_sha256, training.precision, training.published(), log)
    return {**log[-1], "seconds": time.perf_counter() - started}


def _publish(
    job: DistillJob,
    spec_sha256: str,
    precision: str,
    network: nn.Module,
    log: list[dict[str, float]],
) -> None:
    """Write the weights, then the log, then the record, which makes both valid."""
    # Clones, because safetensors refuses names that share memory, as those of a module used twice.
    weights = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in network.state_dict().items()
    }
    write_bytes(job.output, save(weights))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(log[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in log)
    write_bytes(job.log, text.getvalue().encode())
    record = {
        "spec": job.spec(),
        "spec_sha256": spec_sha256,
        "precision": precision,
        "sha256": digest_file(job.output),
        "log_sha256": digest_file(job.log),
    }
    write_json(job.record, record)
    remove(job.checkpoint)
