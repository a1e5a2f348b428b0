"""Train one student on shards, and write its files."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable

from safetensors.torch import save
from torch import nn

from pipeline.dataset.stream import ImageStream
from pipeline.device.seeding import seed_all
from pipeline.device.threads import use_threads
from pipeline.distillation.job import DistillJob, check_shards
from pipeline.distillation.loop import Checkpoint, train
from pipeline.distillation.step import Training
from pipeline.execution.shown_loss import show_loss
from pipeline.execution.torchrun import from_first, is_first, own_share
from pipeline.storage import (
    digest_file,
    digest_json,
    remove,
    write_bytes,
    write_json,
)
from pipeline.teachers.networks import (
    build_network,
    load_weights,
)
from pipeline.teachers.teacher import cached_teacher
from pipeline.tracking.live_log import live_log

KEEP_BYTES = 1 << 30  # Pixels that the stream keeps in memory, in bytes.


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
        UserError: A tar was changed, the device has too little memory for a batch, or the
            parameters do not fit the networks.
        FloatingPointError: The loss is infinite or NaN.

    Example::

        row = distill(job, "cpu", report=lambda images: None)
        row["accuracy"]  # share of the last batch that the student assigns to the intended class
    """
    started = time.perf_counter()
    use_threads(job.training.threads)
    from_first(lambda: check_shards(job))
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
    with live_log(job.tracking if is_first() else None, spec_sha256) as live:

        def track(rows: list[dict[str, float]]) -> None:
            live(rows)
            show_loss(rows[-1]["loss"])

        log = train(job.name, training, stream, job.training, checkpoint, report, track)
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
    if job.lock is not None:
        job.lock.check()
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
