"""Measure optimisations of a step on a CPU, each in alternation with its absence.

    python -m benchmarks.engine.step [SUBJECT ...] [--threads 1] [--pairs 5]

- memory: steps of the compiled engine (ResNet-20, batch 256) in a process that keeps freed memory
  (``pipeline/device/threads.py``) and in a process that does not;
- registers: steps of the compiled engine (ResNet-20, batch 256) with the loads and stores of
  ``pipeline/device/vector_loads.py`` and with those of ``torch.compile``;
- sums: steps of the compiled engine (ResNet-20, batch 256, float32) that sum the inputs of
  BatchNorm over each image and then over the batch, and steps that sum over the batch at once;
- student: a student's training (ResNet-20 to ResNet-20, the default distillation), compared like
  "registers";
- norms: steps of a MobileNetV3-small with random weights (224 pixels, batch 16), with R_TV and R_l2
  summed row by row and image by image;
- depthwise: forward pass and gradient of a strided depthwise convolution in bfloat16 (96 channels
  of 28x28, 3x3, stride 2, batch 64) as in ``pipeline/device/depthwise.py`` and as in PyTorch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from benchmarks.engine import loop as engine
from benchmarks.gpu.checks import random_teacher
from examples.cifar10 import resnet
from pipeline.config.distillation import DistillationConfig
from pipeline.device import compiling
from pipeline.device.depthwise import UnitStride
from pipeline.device.threads import keep_memory, use_threads
from pipeline.distillation.step import Training
from pipeline.objective import bn_statistics, image_priors
from pipeline.storage import write_json


def steps(kept: bool, threads: int) -> Callable[[], None]:
    """Measure some steps of an engine after it was compiled."""
    torch.set_num_threads(threads)
    if kept:
        keep_memory()
    return _stepping(engine.ours(256, "auto", True))


def registers(half: bool, threads: int) -> Callable[[], None]:
    """Measure some steps of an engine, with or without our loads and stores."""
    use_threads(threads)
    _without_vector_loads(half)
    return _stepping(engine.ours(256, "auto", True))


def sums(by_image: bool, threads: int) -> Callable[[], None]:
    """Measure some steps of an engine in float32, with sums of each image or of the batch."""
    use_threads(threads)
    if not by_image:
        setattr(bn_statistics, "_mean", lambda values, dims, _: values.mean(dims))  # noqa: B010
    return _stepping(engine.ours(256, "float32", True))


def student(half: bool, threads: int) -> Callable[[], None]:
    """Measure some steps of a student's training, with or without our loads and stores."""
    use_threads(threads)
    _without_vector_loads(half)
    torch.manual_seed(0)
    teacher = random_teacher(resnet(3), (3, 32, 32), 10, 256, torch.device("cpu"))
    training = Training(teacher, resnet(3), DistillationConfig(), seed=0)
    pixels = torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8)

    def run() -> None:
        with training:
            for number in range(4):
                training.step(number, pixels)

    return run


def _without_vector_loads(half: bool) -> None:
    if not half:
        setattr(compiling, "use_vector_loads", lambda: None)  # noqa: B010


def norms(rows: bool, threads: int) -> Callable[[], None]:
    """Measure some steps of an engine whose images are large."""
    use_threads(threads)
    if not rows:
        image_priors._norm = _at_once
    shape, classes, batch = (3, 224, 224), 1000, 16
    network = torchvision.models.mobilenet_v3_small(weights=None)
    teacher = random_teacher(network, shape, classes, batch, torch.device("cpu"))
    return _stepping(engine.Ours(teacher, engine.labels_of(batch, classes), "auto", True))


def _stepping(ours: engine.Ours) -> Callable[[], None]:
    count = len(ours.labels)
    images = torch.randn(count, *ours.engine.teacher.shape)
    factors = torch.ones(count, 2)

    def run() -> None:
        with ours.engine:
            for _ in range(4):
                ours.engine.step(images, ours.labels, factors)

    return run


def _at_once(values: Tensor) -> Tensor:
    return values.float().square().flatten(1).sum(1).clamp_min(1e-12).sqrt()


def convolution(unit: bool, threads: int) -> Callable[[], None]:
    """Measure a strided depthwise convolution and the gradient of its input."""
    use_threads(threads)
    images = torch.randn(64, 96, 28, 28).bfloat16().to(memory_format=torch.channels_last)
    images.requires_grad_(True)
    weight = torch.randn(96, 1, 3, 3).bfloat16()

    def run() -> None:
        with UnitStride() if unit else contextlib.nullcontext():
            F.conv2d(images, weight, stride=2, padding=1, groups=96).sum().backward()

    return run


SUBJECTS = {
    "memory": steps,
    "registers": registers,
    "sums": sums,
    "student": student,
    "norms": norms,
    "depthwise": convolution,
}
_run: Callable[[], None]


def _open(subject: str, ours: bool, threads: int) -> None:
    global _run
    _run = SUBJECTS[subject](ours, threads)
    for _ in range(2):
        _run()


def _timed() -> float:
    started = time.perf_counter()
    _run()
    return time.perf_counter() - started


def compare(subject: str, threads: int, pairs: int) -> list[float]:
    """Compute the seconds without, over the seconds with, for each pair of new processes."""
    spawn = get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, _open, (subject, False, threads)) as without,
        ProcessPoolExecutor(1, spawn, _open, (subject, True, threads)) as within,
    ):
        for process in (without, within):
            process.submit(_timed).result()
        return [
            without.submit(_timed).result() / within.submit(_timed).result() for _ in range(pairs)
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}")
    options = parser.parse_args()
    report = {}
    for subject in options.subjects or SUBJECTS:
        ratios = compare(subject, options.threads, options.pairs)
        report[subject] = ratios
        sys.stdout.write(
            f"{subject}: {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"of {options.pairs} pairs, {options.threads} thread, load {os.getloadavg()[0]:.1f}\n"
        )
    write_json(Path("reports/benchmarks/step.json"), report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
