"""The training loop of a student: its steps, its log and its checkpoints."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pipeline.config.distillation import DistillationConfig
from pipeline.dataset.stream import Batch, ImageStream, Place
from pipeline.device.memory import enough_memory
from pipeline.distillation.step import Step, Training
from pipeline.execution.torchrun import average, from_first, is_first
from pipeline.storage import Location, read_bytes, replacing
from pipeline.teachers.file_kinds import damaged_member

LOG_POINTS = 100  # A log has about this many rows, whatever the number of steps.


@dataclass(slots=True)
class Progress:
    """How far a student's training is.

    Attributes:
        step: Number of the next step.
        epoch: Epoch of the next batch.
        position: Place of the next batch in its epoch.
        log: Rows of the log so far.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    log: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file that an interrupted training continues from.

    Attributes:
        path: The checkpoint file.
        spec_sha256: Digest of the student's spec. A checkpoint of another spec is ignored.
    """

    path: Location
    spec_sha256: str

    def load(self, training: Training) -> Progress:
        """Restore a training from the file; start at step 0 where no file fits."""
        saved = from_first(lambda: self._read(training.precision))
        if saved is None:
            return Progress()
        training.load_state_dict(saved["training"])
        return Progress(**saved["progress"])

    def save(self, training: Training, progress: Progress) -> None:
        """Replace the file by the state of a training."""
        content = {
            "spec_sha256": self.spec_sha256,
            "precision": training.precision,
            "training": training.state_dict(),
            "progress": asdict(progress),
        }
        with replacing(self.path) as file:
            torch.save(content, file)

    def _read(self, precision: str) -> dict[str, Any] | None:
        """Return the file's content, or None if its spec or its number format is another."""
        try:
            data = read_bytes(self.path)
            if damaged_member(data) is not None:
                return None
            saved: dict[str, Any] = torch.load(
                io.BytesIO(data), map_location="cpu", weights_only=True
            )
        except Exception:
            # There is no checkpoint, or a machine failed while writing it. Start from step 0.
            return None
        same = saved["spec_sha256"] == self.spec_sha256 and saved["precision"] == precision
        return saved if same else None


def train(
    name: str,
    training: Training,
    stream: ImageStream,
    config: DistillationConfig,
    checkpoint: Checkpoint,
    report: Callable[[float], object],
    track: Callable[[list[dict[str, float]]], object],
) -> list[dict[str, float]]:
    """Take all steps of a student, from its checkpoint if there is one.

    Where torchrun started several processes, all of them call this function together. The first
    process writes the checkpoints.

    Args:
        name: Name of the student, for messages.
        training: The student.
        stream: Images to learn from.
        config: How the student is trained.
        checkpoint: File to continue from and to write.
        report: Called with the number of images after each step.
        track: Called with all rows of the log so far, after each new one.

    Returns:
        Rows of the log: ``step``, ``loss``, ``agreement`` and ``accuracy``.

    Raises:
        UserError: The device has too little memory for a batch.
        FloatingPointError: The loss is infinite or NaN.
    """
    progress = checkpoint.load(training)
    report(progress.step * config.batch_size)
    advice = (
        f"{name}: the memory of this device does not hold its batches of {config.batch_size}: "
        "lower distillation.batch_size, or adaptive.training.batch_size for the student of a round"
    )
    with training, enough_memory(advice):
        for place, (pixels, labels) in _remaining_batches(config, stream, progress):
            step = training.step(progress.step, pixels)
            progress.step, (progress.epoch, progress.position) = progress.step + 1, place
            last = progress.step == config.steps
            if last or progress.step % max(1, config.steps // LOG_POINTS) == 0:
                progress.log.append(_log_row(progress.step, step, training, pixels, labels))
                track(progress.log)
            report(config.batch_size)
            if is_first() and not last and progress.step % config.checkpoint_every == 0:
                checkpoint.save(training, progress)
    return progress.log


def _remaining_batches(
    config: DistillationConfig, stream: ImageStream, progress: Progress
) -> Iterator[tuple[Place, Batch]]:
    """Yield the batches of the remaining steps. Nothing is read if no step remains."""
    left = config.steps - progress.step
    return islice(stream.endless(progress.epoch, progress.position), left)


def _log_row(
    number: int, step: Step, training: Training, pixels: Tensor, labels: Tensor
) -> dict[str, float]:
    """Compute one row of the log, averaged over the processes.

    ``agreement`` is the share of the augmented batch that student and teacher classify alike.
    ``accuracy`` is the share of the batch before augmentation that the student, in eval mode,
    assigns to the intended class.
    """
    student = training.student.eval()
    with torch.no_grad():
        answers = student(training.network_input(pixels)).argmax(1).cpu()
    correct = (answers == labels).float().mean()
    agreement = (step.logits.argmax(1) == step.target.argmax(1)).float().mean()
    values = average(torch.stack([step.loss.cpu(), agreement.cpu(), correct])).tolist()
    if not math.isfinite(values[0]):
        raise FloatingPointError(
            f"the loss is {values[0]} at step {number}: lower distillation.learning_rate, or "
            "distillation.imitation if that is large"
        )
    return {"step": number, **dict(zip(("loss", "agreement", "accuracy"), values, strict=True))}
