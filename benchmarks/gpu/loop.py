"""Check the inversion loop on a GPU, and compare its speed with the published recipe.

    python -m benchmarks.gpu.loop [--reports DIR] [--seconds 480] [--pairs 5] [--toy]

The script needs a GPU of 80 GB and some minutes. ``--toy`` runs everything at toy size on the CPU.
It writes ``gpu.json`` and ``gpu.md`` into ``--reports`` after each network.

Besides torch, torchvision, NumPy, Pillow and tqdm it needs pydantic, ruamel.yaml, fsspec and
universal_pathlib. For a machine without a network, ``pip download`` the wheels ``pydantic
pydantic-core annotated-types typing-inspection typing-extensions ruamel.yaml universal-pathlib
pathlib-abc fsspec`` for its Python and platform (``pydantic-core`` is compiled). On that machine
``pip install --no-index --no-deps --target SITE *.whl``, and put SITE on PYTHONPATH.

The check compares loss and gradient of the default engine (compiled, bfloat16, channels-last) with
eager float32 without TF32 over a few steps. The error of eager bfloat16 is measured too, and the
engine's error may not be much larger. For ResNet-34 the compiled float32 engine is checked as well.

The speed test runs complete batches of this project (start, 200 iterations, judgement) in
alternation with a tenth of a batch of the published recipe (see ``benchmarks.engine.loop``). The
recipe runs once with PyTorch's default for float32, convolutions in TF32, and once without TF32.
PyTorch counts the FLOPs forward and backward to the pixels. The peak is that of a bfloat16 matrix
product in the same run. This project's loop also runs without CUDA graphs, which help where kernels
are shorter than their launch, and, at 32 pixels, with the default objective, whose first
iterations have half the size. The required speeds hold for the loop with full size in all
iterations. The slowest kernels of that loop are listed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.engine.loop import (
    DEFAULT,
    DEFAULT_OBJECTIVE,
    PUBLISHED,
    SHAPE,
    WHOLE,
    Ours,
    Published,
    labels_of,
)
from benchmarks.gpu.checks import check, counted_flops, float32_convolutions, random_teacher
from benchmarks.gpu.report import table
from benchmarks.machine import Warnings, choose_device, describe, matrix_peak, seconds, synchronise
from benchmarks.teachers.cifar10_networks import resnet18, resnet34
from examples.cifar10 import resnet

LISTED = 20  # Number of listed kernels.
PUBLISHED_FLOAT32 = "published recipe, no TF32"
PLAIN = f"{WHOLE}, no CUDA graphs"


@dataclass(frozen=True, slots=True)
class Case:
    """A network, its batch size and the required results."""

    name: str
    build: Callable[[], nn.Module]
    side: int
    classes: int
    batch: int
    strict: bool  # Whether to check the compiled engine in float32 too.
    bars: dict[str, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, self.side, self.side)


@dataclass(frozen=True, slots=True)
class Size:
    iterations: int
    slow: int  # Iterations of the published recipe.
    compiled: bool
    matrix: int
    profiled: int  # Iterations under the profiler: the judgement at the end is a small part.


FULL, TOY = Size(200, 20, True, 8192, 20), Size(4, 2, False, 128, 3)
CASES = (
    Case("ResNet-34", resnet34, 32, 10, 1024, True, {"ratio": 10.0, "ms_an_image": 10.0}),
    Case(
        "ResNet-50",
        lambda: torchvision.models.resnet50(weights=None),
        *(224, 1000, 128, False),
        {"share_of_peak": 0.4},
    ),
    Case("ResNet-20", lambda: resnet(3), 32, 10, 256, False, {}),
)
TOY_CASES = (
    Case("ResNet-34", lambda: resnet34(width=8), 16, 10, 8, True, CASES[0].bars),
    Case("ResNet-50", lambda: resnet18(width=4), 16, 10, 4, False, CASES[1].bars),
    Case("ResNet-20", lambda: resnet(1), 16, 10, 4, False, {}),
)


def run_case(
    case: Case, size: Size, device: torch.device, deadline: float, pairs: int
) -> dict[str, Any]:
    """Measure errors, rates and memory of one network."""
    labels = labels_of(case.batch, case.classes)
    teacher = random_teacher(case.build(), case.shape, case.classes, case.batch, device)
    memory: dict[str, float | None] = {}
    with _measured(memory, WHOLE, device):
        ours = Ours(teacher, labels, "bfloat16", size.compiled)
        _warm(ours, device)
    with _measured(memory, PUBLISHED, device):
        network = copy.deepcopy(teacher.network).requires_grad_(True)
        baseline = Published(network, case.shape, labels)
        _warm(baseline, device)
    plain = Ours(teacher, labels, "bfloat16", size.compiled, graphs=False)
    _warm(plain, device)
    strict = size.compiled if case.strict else None
    errors = check(teacher, labels, ours.engine, plain.engine, strict)
    loops: dict[str, tuple[Published | Ours, int]] = {
        PUBLISHED: (baseline, size.slow),
        PUBLISHED_FLOAT32: (baseline, size.slow),
        WHOLE: (ours, size.iterations),
        PLAIN: (plain, size.iterations),
    }
    if case.side <= SHAPE[1]:
        halved = Ours(teacher, labels, "bfloat16", size.compiled, DEFAULT_OBJECTIVE)
        halved.run(20)  # Enough iterations of both sizes.
        loops[DEFAULT] = (halved, size.iterations)
    rates: dict[str, list[float]] = {name: [] for name in loops}
    took = 0.0
    while not rates[WHOLE] or (len(rates[WHOLE]) < pairs and time.monotonic() + took < deadline):
        started = time.monotonic()
        for name, (loop, iterations) in loops.items():
            with float32_convolutions(name == PUBLISHED_FLOAT32):
                rates[name].append(_rate(loop, iterations, device))
        took = time.monotonic() - started
    return {
        "batch": case.batch,
        "side": case.side,
        "errors": errors,
        "loops": summarise(rates, memory, size.iterations),
        "kernels": slowest(ours, size.profiled, device),
        "flops_an_image_iteration": counted_flops(teacher),
        "bars": case.bars,
    }


def slowest(loop: Published | Ours, iterations: int, device: torch.device) -> list[dict[str, Any]]:
    """List the kernels that take the longest in some iterations, with their share of the time."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        loop.run(iterations)
        synchronise(device)
    averages = seen.key_averages()
    spent = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in averages}
    calls, whole = {event.key: event.count for event in averages}, sum(spent.values())
    if not whole:  # The machine does not allow profiling.
        return []
    names = sorted(spent, key=lambda name: -spent[name])[:LISTED]
    return [
        {"kernel": name, "calls": calls[name], "share": round(spent[name] / whole, 4)}
        for name in names
    ]


def summarise(
    rates: dict[str, list[float]], memory: dict[str, float | None], iterations: int
) -> dict[str, Any]:
    """Compute the median rate of each loop, and median and range of its ratio to the recipe."""
    rows = {}
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates[PUBLISHED], strict=True)]
        median = statistics.median(values)
        rows[name] = {
            "image_iterations_per_second": round(median, 1),
            "rates": [round(value, 1) for value in values],
            "ratio": round(statistics.median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
            "ms_an_image": round(1000 * iterations / median, 3),
            "peak_memory_gib": memory.get(name),
        }
    return rows


def judged(result: dict[str, Any], peak: float) -> dict[str, Any]:
    """Add the share of the peak, and compare each result with its requirement."""
    ours = result["loops"][WHOLE]
    flops = result["flops_an_image_iteration"] * ours["image_iterations_per_second"]
    reached = {**ours, "share_of_peak": round(flops / peak, 3)}
    bars = {
        name: {
            "bar": bar,
            "reached": reached[name],
            "met": reached[name] <= bar if name == "ms_an_image" else reached[name] >= bar,
        }
        for name, bar in result["bars"].items()
    }
    return {
        **result,
        "tflops": round(flops / 1e12, 3),
        "share_of_peak": reached["share_of_peak"],
        "bars": bars,
    }


def _rate(loop: Published | Ours, iterations: int, device: torch.device) -> float:
    """Measure image-iterations per second."""
    return len(loop.labels) * iterations / seconds(lambda: loop.run(iterations), device)


def _warm(loop: Published | Ours, device: torch.device) -> None:
    """Compile, let libraries choose kernels, and make one run to measure memory."""
    loop.run(2)
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    loop.run(3)
    synchronise(device)


@contextlib.contextmanager
def _measured(memory: dict[str, float | None], name: str, device: torch.device) -> Iterator[None]:
    """Measure the peak of additional device memory in this block; None on a CPU."""
    if device.type != "cuda":
        memory[name] = None
        yield
        return
    gc.collect()  # The previous case left reference cycles.
    before = torch.cuda.memory_allocated(device)
    yield
    peak = torch.cuda.max_memory_allocated(device) - before
    memory[name] = round(peak / 2**30, 2)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=Path, default=Path("reports/benchmarks"))
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="no pair starts after this time"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    device, warnings = choose_device(options.toy), Warnings()
    size, cases = (TOY, TOY_CASES) if options.toy else (FULL, CASES)
    peak = matrix_peak(device, size.matrix)
    report = {
        "toy": options.toy,
        "machine": describe(device),
        "bf16_matrix_peak_tflops": round(peak / 1e12, 6),
        "cases": {},
        "warnings": warnings.seen,
    }
    options.reports.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases, 1):
        # The cases share the remaining time. The second network compiles for longer.
        deadline = started + options.seconds * number / len(cases)
        result = run_case(case, size, device, deadline, options.pairs)
        report["cases"][case.name] = judged(result, peak)
        report["seconds"] = round(time.monotonic() - started, 1)
        (options.reports / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.reports / "gpu.md").write_text(table(report))
    sys.stdout.write(table(report))
    right = all(row["right"] for case in report["cases"].values() for row in case["errors"])
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
