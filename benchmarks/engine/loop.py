"""Compare the inversion loop with the published recipe: image-iterations per second.

    python -m benchmarks.engine.loop [--batch 256] [--iterations 200] [--pairs 5] [--threads 2]
        [--loops NAME ...]

docs/results/speed.md has results of 2 cores of an AMD EPYC (AVX-512, bf16) with torch 2.14.1. The
teacher is a CIFAR-10 ResNet-20 with random weights, which do not change the speed. The loops run in
alternation, each in a new process:

- the baseline is the published recipe, written from the paper: eager, float32, gradients of the
  teacher's weights are computed too, forward hooks compute mean and variance separately, and each
  step reads each loss to the host;
- the default is the compiled loop, in bfloat16 where the cores have it, with the default objective
  of this size, whose images have half the size in the first half of the iterations.

The default runs a full batch from the first pixel to the last judgement. The slower loops run a
tenth of the iterations at full size. ``--loops`` selects loops. Without it all run, except
the one in bfloat16 on a processor that would emulate these numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import matrix_peak
from examples.cifar10 import resnet
from pipeline.device.precision import has_bfloat16, precision_on
from pipeline.device.threads import use_threads
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import invert
from pipeline.objective.presets import PRESETS, Objective
from pipeline.storage import write_json
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher

SHAPE = (3, 32, 32)
DEFAULT_OBJECTIVE = PRESETS["normalised-medium"]
PUBLISHED, WHOLE, DEFAULT = "published recipe", "compiled bfloat16", "default"
CPU = torch.device("cpu")


def make_teacher() -> Teacher:
    torch.manual_seed(0)
    network = resnet(3).eval().requires_grad_(False)
    one = torch.ones(1, 3, 1, 1)
    return Teacher(network, Preprocessing(one * 0.45, one * 0.25), SHAPE, 10, "")


class Published:
    """The loop of the published CIFAR-10 recipe, on the network's device.

    The weights of the network collect gradients.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...], labels: Tensor) -> None:
        self.network = network.eval()
        self.shape = shape
        self.device = next(network.parameters()).device
        self.labels = labels.to(self.device)
        self.losses: list[Tensor] = []
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(self._hook)

    def _hook(self, module: nn.BatchNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        variance = x.permute(1, 0, 2, 3).reshape(x.shape[1], -1).var(1, unbiased=False)
        assert module.running_mean is not None and module.running_var is not None
        self.losses.append(
            torch.norm(module.running_var - variance, 2) + torch.norm(module.running_mean - mean, 2)
        )

    def run(self, iterations: int) -> None:
        images = torch.randn(len(self.labels), *self.shape, device=self.device, requires_grad=True)
        optimizer = torch.optim.Adam([images], lr=0.05)
        for _ in range(iterations):
            shift = torch.randint(-2, 3, (2,)).tolist()
            moved = torch.roll(images, shift, (2, 3))
            optimizer.zero_grad()
            self.network.zero_grad()
            self.losses.clear()
            loss = nn.functional.cross_entropy(self.network(moved), self.labels)
            parts = (
                moved[..., 1:] - moved[..., :-1],
                moved[..., 1:, :] - moved[..., :-1, :],
                moved[..., 1:, 1:] - moved[..., :-1, :-1],
                moved[..., 1:, :-1] - moved[..., :-1, 1:],
            )
            variation = torch.stack([torch.norm(part) for part in parts]).sum()
            feature = torch.stack(self.losses).sum()
            total = loss + 2.5e-5 * variation + 3e-8 * torch.norm(moved) + 10 * feature
            total.item()
            total.backward()
            optimizer.step()


class Ours:
    """A loop of this project, in a given precision, compiled or eager."""

    def __init__(
        self,
        teacher: Teacher,
        labels: Tensor,
        precision: Any,
        compiled: bool,
        objective: Objective = PRESETS["normalised"],
        graphs: bool = True,
    ) -> None:
        self.engine = Engine(teacher, objective, precision, compiled, graphs=graphs)
        self.labels = labels

    def run(self, iterations: int) -> None:
        with self.engine:
            invert(self.engine, self.labels, 0, iterations)


def labels_of(batch: int, classes: int = 10) -> Tensor:
    return torch.arange(batch) % classes


def published(batch: int) -> Published:
    torch.manual_seed(0)
    return Published(resnet(3), SHAPE, labels_of(batch))


def ours(batch: int, precision: Any, compiled: bool) -> Ours:
    return Ours(make_teacher(), labels_of(batch), precision, compiled)


def default(batch: int) -> Ours:
    return Ours(make_teacher(), labels_of(batch), "auto", True, DEFAULT_OBJECTIVE)


def cores_peak(threads: int) -> float:
    torch.set_num_threads(threads)
    return matrix_peak(CPU, 2048, repeats=1, dtype=getattr(torch, precision_on(CPU, "auto")))


LOOPS: dict[str, Callable[[int], Published | Ours]] = {
    PUBLISHED: published,
    "eager float32": lambda batch: ours(batch, "float32", False),
    "compiled float32": lambda batch: ours(batch, "float32", True),
    WHOLE: lambda batch: ours(batch, "bfloat16", True),
    DEFAULT: default,
}
_loop: Published | Ours


def _process(name: str, options: argparse.Namespace) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        1, get_context("spawn"), _open, (name, options.batch, options.threads)
    )


def _open(name: str, batch: int, threads: int) -> None:
    """Build a loop in a new process, so that no loop runs under the settings of another."""
    global _loop
    if name == PUBLISHED:
        torch.set_num_threads(threads)
    else:
        use_threads(threads)
    _loop = LOOPS[name](batch)


def _run(iterations: int) -> float:
    """Measure image-iterations per second."""
    started = time.perf_counter()
    _loop.run(iterations)
    return len(_loop.labels) * iterations / (time.perf_counter() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    usual = [name for name in LOOPS if name != WHOLE or has_bfloat16(CPU)]
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=usual)
    options = parser.parse_args()
    names = [PUBLISHED, *(name for name in options.loops if name != PUBLISHED)]
    with contextlib.ExitStack() as stack:
        loops = {name: stack.enter_context(_process(name, options)) for name in names}
        for loop in loops.values():
            loop.submit(_run, 2).result()
        rates: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(options.pairs):
            for name, loop in loops.items():
                iterations = options.iterations // (1 if name == DEFAULT else 10)
                rates[name].append(loop.submit(_run, max(1, iterations)).result())
    report = summarise(rates, cores_peak(options.threads), vars(options))
    write_json(Path("reports/benchmarks/engine.json"), report)
    sys.stdout.write(table(report))
    return 0


def summarise(
    rates: dict[str, list[float]], peak: float, options: dict[str, Any]
) -> dict[str, Any]:
    """Compute the median rates, and median and range of the ratios to the first loop."""
    baseline = rates[PUBLISHED]
    rows = {}
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, baseline, strict=True)]
        rows[name] = {
            "images_iterations_per_second": round(statistics.median(values), 1),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    # An image takes 41 million multiply-adds forward and as many backward.
    # At half the size it takes a quarter of that.
    flops = 4 * 41e6 * (1 - 0.75 * DEFAULT_OBJECTIVE.coarse) * statistics.median(rates[DEFAULT])
    return {
        "loops": rows,
        "precision": precision_on(CPU, "auto"),
        "matrix_peak_gflops": round(peak / 1e9, 1),
        "share_of_peak": round(flops / peak, 3),
        "options": options,
        "load": [round(value, 2) for value in os.getloadavg()],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }


def table(report: dict[str, Any]) -> str:
    lines = ["| loop | image-iterations/s | over the published | range |", "|---|---|---|---|"]
    for name, row in report["loops"].items():
        low, high = row["ratio_range"]
        lines.append(
            f"| {name} | {row['images_iterations_per_second']:.0f} | {row['ratio']:.2f}x "
            f"| {low:.2f}-{high:.2f} |"
        )
    lines.append(
        f"\n{report['precision']} matrix peak {report['matrix_peak_gflops']} GFLOP/s, share of it "
        f"{report['share_of_peak']:.0%}; load {report['load']}, {report['machine']}, "
        f"torch {report['torch']}"
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
