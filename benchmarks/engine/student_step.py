"""Measure a student's step against a plain loop, and against an earlier step of ours.

    python -m benchmarks.engine.student_step [--threads 2] [--rounds 5] [--steps 12]

A ResNet-20 learns from a ResNet-20, batch 128, images of 32 x 32. Each loop has a process of its
own, and the loops take turns:

- plain: what a user writes in PyTorch: eager, float32, a ``DataLoader`` of 2 workers that crops and
  mirrors images, Eq. 1, SGD;
- before: the step of ``examples/cifar10.yaml`` with half of the batch adversarial instead of a
  quarter, with the loads and stores of ``torch.compile`` instead of those of
  ``pipeline/device/vector_loads.py``, and with maps summed in the order of their dimensions;
- ours: the step of ``examples/cifar10.yaml``: imitation of feature maps, adversarial images, new
  procedural pictures, Muon.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.gpu.checks import random_teacher
from examples.cifar10 import resnet
from pipeline.config.distillation import DistillationConfig
from pipeline.device import compiling
from pipeline.device.threads import use_threads
from pipeline.distillation import feature_maps, loss_gradient
from pipeline.distillation.adversarial import perturb
from pipeline.distillation.loss import distillation_loss
from pipeline.distillation.step import Training
from pipeline.teachers.teacher import Teacher

BATCH, IMAGES, IMITATION = 128, 2048, 50.0
Steps = Callable[[int], None]


class Augmented(Dataset[Tensor]):
    """Images in memory, cropped and mirrored at random."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.transform = v2.Compose(
            [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32)]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(self.pixels[index])
        return image / 127.5 - 1


def plain(teacher: Teacher, pixels: Tensor) -> Steps:
    """Steps of a plain loop."""
    student = resnet(3).train()
    sgd = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    loader = DataLoader(
        Augmented(pixels), BATCH, shuffle=True, num_workers=2, persistent_workers=True
    )

    def endless() -> Iterator[Tensor]:
        while True:
            yield from loader

    batches = endless()

    def run(steps: int) -> None:
        for _ in range(steps):
            images = next(batches)
            with torch.no_grad():
                target = teacher.network(images)
            loss = distillation_loss(student(images), target, 50.0)
            sgd.zero_grad()
            loss.backward()
            sgd.step()

    return run


def ours(teacher: Teacher, pixels: Tensor) -> Steps:
    """Steps of ``examples/cifar10.yaml``."""
    config = DistillationConfig(imitation=IMITATION)
    training = Training(teacher, resnet(3), config, seed=0)
    batches, number = pixels.split(BATCH), 0

    def run(steps: int) -> None:
        nonlocal number
        with training:
            for _ in range(steps):
                training.step(number, batches[number % len(batches)])
                number += 1

    return run


def before(teacher: Teacher, pixels: Tensor) -> Steps:
    """The same steps as they were earlier."""
    setattr(compiling, "use_vector_loads", lambda: None)  # noqa: B010
    setattr(loss_gradient, "EVERY", 2)  # noqa: B010
    setattr(loss_gradient, "compiled_perturb", lambda: perturb)  # noqa: B010
    setattr(feature_maps, "_sums", lambda values: values.flatten(1).sum(1))  # noqa: B010
    return ours(teacher, pixels)


LOOPS = {"plain": plain, "before": before, "ours": ours}
_run: Steps


def _open(name: str, threads: int) -> None:
    global _run
    use_threads(threads)
    torch.manual_seed(0)
    teacher = random_teacher(resnet(3), (3, 32, 32), 10, 256, torch.device("cpu"))
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    _run = LOOPS[name](teacher, pixels)


def _timed(steps: int) -> float:
    started = time.perf_counter()
    _run(steps)
    return (time.perf_counter() - started) / steps


def measure(threads: int, rounds: int, steps: int) -> dict[str, list[float]]:
    """The seconds of a step of each loop, for each round."""
    spawn = get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, spawn, _open, (name, threads)) for name in LOOPS}
    try:
        for pool in pools.values():
            pool.submit(_timed, 3).result()
        found: dict[str, list[float]] = {name: [] for name in LOOPS}
        for _ in range(rounds):
            for name, pool in pools.items():
                found[name].append(pool.submit(_timed, steps).result())
        return found
    finally:
        for pool in pools.values():
            pool.shutdown()


def table(found: dict[str, list[float]]) -> str:
    """The medians, and the ratios of each round with their ranges, in Markdown."""
    lines = ["| loop | ms a step | over plain | over before |", "|---|---|---|---|"]
    for name, seconds in found.items():
        cells = []
        for base in ("plain", "before"):
            ratios = [a / b for a, b in zip(found[base], seconds, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})")
        lines.append(f"| {name} | {1000 * statistics.median(seconds):.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of each loop in a round")
    options = parser.parse_args(arguments)
    found = measure(options.threads, options.rounds, options.steps)
    sys.stdout.write(f"{table(found)}load at the end: {os.getloadavg()[0]:.1f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
