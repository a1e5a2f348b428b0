"""Measure the milliseconds of a student's step on a GPU, with or without CUDA graphs.

    python -m benchmarks.students.step resnet34 resnet18 [--plain] [--steps 200]

Teacher and student are untrained networks of ``benchmarks.teachers.cifar10_networks``. The images
are random, and a quarter of each batch is adversarial. Only the second half of the steps is
measured, because the first half compiles. The script needs a GPU; ``--toy`` runs a toy size on the
CPU.
"""

from __future__ import annotations

import argparse
import sys

import torch

from benchmarks.gpu.checks import random_teacher
from benchmarks.machine import choose_device, seconds
from benchmarks.teachers import cifar10_networks as cifar_networks
from pipeline.config.distillation import DistillationConfig
from pipeline.distillation.step import Training


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("--plain", action="store_true", help="no CUDA graphs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)
    device = choose_device(options.toy)
    size, width = (8, {"width": 4}) if options.toy else (256, {})
    torch.manual_seed(0)
    network = getattr(cifar_networks, options.teacher)(**width)
    teacher = random_teacher(network, (3, 32, 32), 10, size, device)
    student = getattr(cifar_networks, options.student)(**width)
    config = DistillationConfig(
        steps=options.steps, batch_size=size, adversarial=0.4, compile=not options.toy
    )
    training = Training(teacher, student, config, seed=0, graphs=not options.plain)
    batches = torch.randint(0, 256, (4, size, 3, 32, 32), dtype=torch.uint8)
    half = options.steps // 2

    def run(steps: range) -> None:
        for step in steps:
            training.step(step, batches[step % len(batches)])

    with training:
        run(range(half))
        took = seconds(lambda: run(range(half, options.steps)), device)
    kind = "without" if options.plain or options.toy else "with"
    sys.stdout.write(f"{1000 * took / (options.steps - half):.2f} ms a step, {kind} CUDA graphs\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
