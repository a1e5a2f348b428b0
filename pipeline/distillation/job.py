"""The job that trains one student: its spec, its files, and whether they are complete."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.config.distillation import DistillationConfig
from pipeline.config.student import StudentConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.dataset.held_lock import Lock
from pipeline.dataset.layout import Layout, shard_of
from pipeline.dataset.record_files import read_record
from pipeline.errors import UserError
from pipeline.redaction import redact
from pipeline.source_digest import package_digest
from pipeline.storage import (
    Location,
    digest_file,
    digest_json,
    exists,
    json_bytes,
    read_bytes,
    remove,
)
from pipeline.teachers.networks import (
    factory_digest,
    public_source,
)
from pipeline.tracking.live_log import Tracking

# The folders and files whose code decides the weights of a student. A change in one of them makes
# every student stale.
STUDENT_CODE = (
    "dataset",
    "device",
    "distillation",
    "execution/torchrun.py",
    "local_files.py",
    "objective",
    "procedural.py",
    "redaction.py",
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
        lock: The lock that the run holds on the output's folder, if any.
        tracking: Where the values of the training are logged while it runs, if anywhere.
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
    lock: Lock | None = None
    tracking: Tracking | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def images(self) -> int:
        """Number of images that will pass through the student."""
        return self.training.steps * self.training.batch_size

    @property
    def compiles(self) -> bool:
        """Whether the first step compiles, for the progress bar."""
        return self.training.compile

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
            "student": [public_source(self.student.source), *_published(self.student.arguments)],
            "training": self.training.model_dump(
                mode="json",
                include=set(DistillationConfig.model_fields),
                exclude={"checkpoint_every"},
            ),
            "dataset": self.dataset,
            "seed": self.seed,
            "start": digest_file(self.start) if self.start else None,
            "code": [
                package_digest(STUDENT_CODE),
                factory_digest(self.student.source, "student"),
            ],
            "torch": torch.__version__.partition("+")[0],
        }


def _published(arguments: dict[str, Any]) -> list[Any]:
    """Arguments without secrets; where one was removed, also the digest of all arguments."""
    redacted = redact(arguments)
    changed = digest_json(redacted) != digest_json(arguments)
    return [redacted, digest_json(arguments)] if changed else [redacted]


def tars_digest(shards: Iterable[Location]) -> str:
    """A digest of the contents of tars, as :meth:`pipeline.dataset.dataset.Dataset.digest` has."""
    return digest_json([digest_file(shard) for shard in shards])


def check_shards(job: DistillJob) -> None:
    """Check that a student learns from the tars that its record will name.

    Raises:
        UserError: A tar is missing or was changed since its record was written.
    """
    missing = [shard for shard in job.shards if not exists(shard)]
    if not missing and tars_digest(job.shards) == job.dataset:
        return
    named = ", ".join(map(str, missing or _changed(job.shards)))
    raise UserError(
        f"{job}: {named} is missing, or was changed since its record was written: "
        "run verify --repair, then run this command again"
    )


def _changed(shards: Sequence[Location]) -> list[Location]:
    """The tars that are not those of the records next to them; the folder where none is named."""
    changed = []
    for shard in shards:
        number = shard_of(f"{shard.parent.name}/{shard.name}")
        record = (
            read_record(Layout(shard.parent.parent).record(number)) if number is not None else None
        )
        if record is None or record.tar["sha256"] != digest_file(shard):
            changed.append(shard)
    return changed or [shards[0].parent]


def is_trained(job: DistillJob) -> bool:
    """Return whether the student's files are intact and of the job's present spec."""
    return student_problem(job.output) is None and (
        json.loads(read_bytes(job.record))["spec_sha256"] == digest_json(job.spec())
    )


def proven_files(output: Location) -> list[Location]:
    """The files of a student that are provably of this project: a run may delete them.

    The student's record names the digests of its weights and its log. A checkpoint names its spec.

    Args:
        output: The student's ``.safetensors`` file.

    Returns:
        The files that exist and have the recorded content; the record is last.
    """
    record, checkpoint = output.with_suffix(".json"), output.with_suffix(".checkpoint")
    found = [checkpoint] if is_checkpoint(checkpoint) else []
    facts = sealed_facts(record)
    if facts is not None:
        for path, name in ((output, "sha256"), (output.with_suffix(".csv"), "log_sha256")):
            if exists(path) and digest_file(path) == facts.get(name):
                found.append(path)
        found.append(record)
    return found


def remove_checkpoint(path: Location) -> None:
    """Delete a checkpoint of a stopped run, but no other file of that name."""
    if is_checkpoint(path):
        remove(path)


def is_checkpoint(path: Location) -> bool:
    """Whether the file is a checkpoint of a student, of any spec."""
    if not exists(path):
        return False
    try:
        data = io.BytesIO(read_bytes(path))
        saved = torch.load(data, map_location="cpu", weights_only=True)
        return bool(saved.keys() == {"spec_sha256", "precision", "training", "progress"})
    except Exception:  # torch raises many kinds of errors for a file of another kind
        return False


def sealed_facts(record: Location) -> dict[str, Any] | None:
    """The content of a student's record; None if there is none or its spec was changed."""
    try:
        text = read_bytes(record)
        facts: dict[str, Any] = json.loads(text)
        sealed = text == json_bytes(facts) and facts["spec_sha256"] == digest_json(facts["spec"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if sealed else None


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
