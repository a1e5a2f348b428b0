"""Train a student from scratch on shards, so that it answers as the teacher does."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.config.distillation import DistillationConfig
from pipeline.config.student import StudentConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.dataset.stream import Batch, ImageStream, Place
from pipeline.device.memory import enough_memory
from pipeline.device.seeding import seed_all
from pipeline.device.threads import use_threads
from pipeline.distillation.step import Step, Training
from pipeline.execution.torchrun import average, from_first, is_first, own_share
from pipeline.source_digest import source_digest, source_files
from pipeline.storage import (
    Location,
    digest_file,
    digest_json,
    exists,
    json_bytes,
    read_bytes,
    remove,
    replacing,
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

LOG_POINTS = 100
KEEP_BYTES = 1 << 30  # of pixels, in memory

# The folders and files whose code decides the weights of a student. A change in one of them makes
# every student stale.
STUDENT_CODE = (
    "dataset",
    "device",
    "distillation",
    "execution/torchrun.py",
    "objective",
    "source_digest.py",
    "storage.py",
    "teachers",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillJob:
    """One student: what it learns from, how, and the ``.safetensors`` file it becomes.

    ``dataset`` is a digest of ``shards``' contents. ``start`` holds weights to go on from.
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
        """Images that will pass through the student."""
        return self.training.steps * self.training.batch_size

    @property
    def record(self) -> Location:
        return self.output.with_suffix(".json")

    @property
    def log(self) -> Location:
        return self.output.with_suffix(".csv")

    @property
    def checkpoint(self) -> Location:
        return self.output.with_suffix(".checkpoint")

    def spec(self) -> dict[str, Any]:
        """All that the trained weights follow from."""
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


@dataclass(slots=True)
class _Progress:
    """How far a student is; a checkpoint holds it beside the weights."""

    step: int
    epoch: int
    position: int  # of the next batch in the epoch
    log: list[dict[str, float]]


def is_trained(job: DistillJob) -> bool:
    """Whether ``output`` was made to today's spec and is intact."""
    return student_problem(job.output) is None and (
        json.loads(read_bytes(job.record))["spec_sha256"] == digest_json(job.spec())
    )


def student_problem(output: Location) -> str | None:
    """What is wrong with the files of a trained student, whatever it was trained on."""
    record, log = output.with_suffix(".json"), output.with_suffix(".csv")
    try:
        text = read_bytes(record)
        facts = json.loads(text)
        whole = text == json_bytes(facts) and facts["spec_sha256"] == digest_json(facts["spec"])
        if not whole:
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
    """Train one student to ``job.output``; go on from its checkpoint where there is one.

    Where torchrun started this process, all of them call this together, and the first one writes.

    Returns the last logged row with ``seconds``, the time that this call took.

    Raises:
        UserError: the memory does not hold a batch, or what the parameters say cannot be.
    """
    started = time.perf_counter()
    config = job.training
    use_threads(config.threads)
    loaded = cached_teacher(job.teacher.model_dump_json(), job.teacher_digest, device)
    spec_sha256 = digest_json(job.spec())
    seed_all(job.seed)
    student = build_network(job.student.source, job.student.arguments, "student")
    if job.start:
        load_weights(student, job.start, "student")
    state = Training(loaded, student, config, job.seed)
    stream = ImageStream(
        job.shards,
        config.batch_size,
        config.shuffle,
        job.seed,
        share=own_share(),
        keep=KEEP_BYTES // math.prod(loaded.shape),
    )
    progress = _resume(job, spec_sha256, state)
    report(progress.step * config.batch_size)
    advice = (
        f"{job}: the memory of this device does not hold its batches of {config.batch_size}: lower "
        "distillation.batch_size, or adaptive.training.batch_size for the student of a round"
    )
    with state, enough_memory(advice):
        for place, (pixels, labels) in _batches(config, stream, progress):
            step = state.step(progress.step, pixels)
            progress.step, (progress.epoch, progress.position) = progress.step + 1, place
            if progress.step % max(1, config.steps // LOG_POINTS) == 0 or (
                progress.step == config.steps
            ):
                progress.log.append(_log_row(progress.step, step, state.student, labels))
            report(config.batch_size)
            due = progress.step % config.checkpoint_every == 0 and progress.step < config.steps
            if due and is_first():
                _save_checkpoint(job, spec_sha256, state, progress)
    if is_first():
        _finish(job, spec_sha256, state, progress.log)
    return {**progress.log[-1], "seconds": time.perf_counter() - started}


def _batches(
    config: DistillationConfig, stream: ImageStream, progress: _Progress
) -> Iterator[tuple[Place, Batch]]:
    """What is left to see; reads nothing where that is nothing."""
    left = config.steps - progress.step
    return islice(stream.endless(progress.epoch, progress.position), left)


def _log_row(number: int, step: Step, student: nn.Module, labels: Tensor) -> dict[str, float]:
    """``agreement`` with the teacher on the augmented batch; ``accuracy`` against the intended
    labels of the same batch unaugmented, with the student in eval mode."""
    student.eval()
    with torch.no_grad():
        correct = (student(step.clean).argmax(1).cpu() == labels).float().mean()
    agreement = (step.logits.argmax(1) == step.target.argmax(1)).float().mean()
    values = average(torch.stack([step.loss.cpu(), agreement.cpu(), correct])).tolist()
    if not math.isfinite(values[0]):
        raise FloatingPointError(
            f"the loss is {values[0]} at step {number}: lower distillation.learning_rate, or "
            "distillation.imitation where that is large"
        )
    return {"step": number, **dict(zip(("loss", "agreement", "accuracy"), values, strict=True))}


def _resume(job: DistillJob, spec_sha256: str, state: Training) -> _Progress:
    saved = from_first(lambda: _read_checkpoint(job, spec_sha256, state))
    if saved is None:
        return _Progress(step=0, epoch=0, position=0, log=[])
    state.load_state_dict(saved["training"])
    return _Progress(**saved["progress"])


def _read_checkpoint(job: DistillJob, spec_sha256: str, state: Training) -> dict[str, Any] | None:
    """None where there is none of this spec, or its device computed in another precision."""
    try:
        data = io.BytesIO(read_bytes(job.checkpoint))
        saved: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
    except Exception:  # none, or one that a dying machine left broken: start over
        return None
    same = saved["spec_sha256"] == spec_sha256 and saved["precision"] == state.precision
    return saved if same else None


def _save_checkpoint(
    job: DistillJob, spec_sha256: str, state: Training, progress: _Progress
) -> None:
    content = {
        "spec_sha256": spec_sha256,
        "precision": state.precision,
        "training": state.state_dict(),
        "progress": {
            "step": progress.step,
            "epoch": progress.epoch,
            "position": progress.position,
            "log": progress.log,
        },
    }
    with replacing(job.checkpoint) as file:
        torch.save(content, file)


def _finish(
    job: DistillJob, spec_sha256: str, state: Training, log: list[dict[str, float]]
) -> None:
    """Weights, then the log, then the record that makes them count."""
    weights = state.published().state_dict()
    # Clones: the format refuses names that share memory, as those of a module used twice do.
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    write_bytes(job.output, save(weights))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(log[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in log)
    write_bytes(job.log, text.getvalue().encode())
    record = {
        "spec": job.spec(),
        "spec_sha256": spec_sha256,
        "precision": state.precision,
        "sha256": digest_file(job.output),
        "log_sha256": digest_file(job.log),
    }
    write_json(job.record, record)
    remove(job.checkpoint)
