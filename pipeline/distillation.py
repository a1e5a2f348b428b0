"""Train a student from scratch on shards, so that it answers as the teacher does."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from pipeline import augmentation, sources, streaming, teacher
from pipeline.augmentation import augment
from pipeline.code import source_digest
from pipeline.config import DistillationConfig, StudentConfig, TeacherConfig
from pipeline.plan import derive_seed
from pipeline.sources import build_network, load_weights
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
from pipeline.streaming import epoch_batches
from pipeline.teacher import Teacher, cached_teacher

LOG_POINTS = 100


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
        factory = sources.factory_file(self.student.source, "student")
        modules = (__file__, augmentation.__file__, streaming.__file__, teacher.__file__)
        code = [Path(str(file)) for file in modules] + ([factory] if factory else [])
        return {
            "teacher": self.teacher_digest,
            "student": [sources.public_source(self.student.source), self.student.arguments],
            "training": self.training.model_dump(
                mode="json",
                include=set(DistillationConfig.model_fields),
                exclude={"checkpoint_every"},
            ),
            "dataset": self.dataset,
            "seed": self.seed,
            "start": digest_file(self.start) if self.start else None,
            "code": source_digest(code),
            "torch": torch.__version__.partition("+")[0],
        }


@dataclass(slots=True)
class _State:
    """What a checkpoint holds beside the weights."""

    step: int
    epoch: int
    position: int  # batches of the epoch already seen
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


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Eq. 1 of the paper, ``T^2 KL(p_T(x / T) || p_S(x / T))``, mean over the batch.

    ``[B, K], [B, K]`` to a scalar. ``T^2`` keeps the gradient's size over temperatures (Hinton et
    al. 2015).
    """
    log_student = F.log_softmax(student_logits.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def distill(job: DistillJob, device: str, report: Callable[[float], None]) -> dict[str, float]:
    """Train one student to ``job.output``; go on from its checkpoint where there is one.

    Returns the last logged row with ``seconds``, the time that this call took.
    """
    started = time.perf_counter()
    training = job.training
    torch.set_num_threads(training.threads)
    loaded = cached_teacher(job.teacher.model_dump_json(), job.teacher_digest, device)
    spec_sha256 = digest_json(job.spec())
    torch.manual_seed(job.seed)
    student = build_network(job.student.source, job.student.arguments, "student")
    if job.start:
        load_weights(student, job.start, "student")
    student.to(device)
    optimizer = torch.optim.SGD(
        student.parameters(),
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
    )
    state = _resume(job, spec_sha256, student, optimizer)
    report(state.step * training.batch_size)
    for pixels, labels in _batches(job, state):
        _train_step(job, loaded, student, optimizer, state, pixels, labels)
        report(len(pixels))
        if state.step % training.checkpoint_every == 0 and state.step < training.steps:
            _save_checkpoint(job, spec_sha256, student, optimizer, state)
    _finish(job, spec_sha256, student, state)
    return {**state.log[-1], "seconds": time.perf_counter() - started}


def _batches(job: DistillJob, state: _State) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches from where ``state`` stands to the last step, epoch after epoch."""
    training = job.training
    while state.step < training.steps:
        epoch = epoch_batches(
            job.shards, training.batch_size, training.shuffle, job.seed, state.epoch
        )
        seen = 0
        for seen, batch in enumerate(epoch, start=1):
            if seen <= state.position:
                continue
            state.position = seen
            yield batch
            if state.step >= training.steps:
                return
        if seen == 0:
            raise RuntimeError(f"{job.name}: the shards hold less than one batch")
        state.epoch, state.position = state.epoch + 1, 0


def _train_step(
    job: DistillJob,
    loaded: Teacher,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: _State,
    pixels: Tensor,
    labels: Tensor,
) -> None:
    training = job.training
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(training, state.step)
    generator = torch.Generator().manual_seed(derive_seed(job.seed, state.step))
    clean = loaded.preprocessing.normalise(pixels.to(loaded.device))
    images = augment(clean, training, generator)
    with torch.no_grad():
        target = loaded.network(images)
    student.train()
    torch.manual_seed(derive_seed(job.seed, state.step, 1))  # for dropout and its like
    logits = student(images)
    loss = distillation_loss(logits, target, training.temperature)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    state.step += 1
    if state.step % max(1, training.steps // LOG_POINTS) == 0 or state.step == training.steps:
        state.log.append(_log_row(state.step, loss, logits, target, student, clean, labels))


def _log_row(
    step: int,
    loss: Tensor,
    logits: Tensor,
    target: Tensor,
    student: nn.Module,
    clean: Tensor,
    labels: Tensor,
) -> dict[str, float]:
    """``agreement`` with the teacher on the augmented batch; ``accuracy`` against the intended
    labels of the same batch unaugmented, with the student in eval mode."""
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss.item()} at step {step}: lower distillation.learning_rate"
        )
    student.eval()
    with torch.no_grad():
        correct = (student(clean).argmax(1).cpu() == labels).float().mean().item()
    agreement = (logits.argmax(1) == target.argmax(1)).float().mean().item()
    return {"step": step, "loss": loss.item(), "agreement": agreement, "accuracy": correct}


def _learning_rate(training: DistillationConfig, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = min(training.warmup, training.steps // 2)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, training.steps - warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _resume(
    job: DistillJob, spec_sha256: str, student: nn.Module, optimizer: torch.optim.Optimizer
) -> _State:
    fresh = _State(step=0, epoch=0, position=0, log=[])
    try:
        saved = torch.load(io.BytesIO(read_bytes(job.checkpoint)), weights_only=True)
    except Exception:  # none, or one that a dying machine left broken: start over
        return fresh
    if saved["spec_sha256"] != spec_sha256:
        return fresh
    student.load_state_dict(saved["student"])
    optimizer.load_state_dict(saved["optimizer"])
    return _State(**saved["state"])


def _save_checkpoint(
    job: DistillJob,
    spec_sha256: str,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: _State,
) -> None:
    with replacing(job.checkpoint) as file:
        torch.save(
            {
                "spec_sha256": spec_sha256,
                "student": student.state_dict(),
                "optimizer": optimizer.state_dict(),
                "state": {
                    "step": state.step,
                    "epoch": state.epoch,
                    "position": state.position,
                    "log": state.log,
                },
            },
            file,
        )


def _finish(job: DistillJob, spec_sha256: str, student: nn.Module, state: _State) -> None:
    """Weights, then the log, then the record that makes them count."""
    weights = {name: t.detach().cpu().contiguous() for name, t in student.state_dict().items()}
    write_bytes(job.output, save(weights))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(state.log[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in state.log)
    write_bytes(job.log, text.getvalue().encode())
    record = {
        "spec": job.spec(),
        "spec_sha256": spec_sha256,
        "sha256": digest_file(job.output),
        "log_sha256": digest_file(job.log),
    }
    write_json(job.record, record)
    remove(job.checkpoint)
