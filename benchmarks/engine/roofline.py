"""Compare the time of one inversion step with what the machine's rates allow (a roofline).

    python -m benchmarks.engine.roofline [--network resnet20] [--batch N] [--device cpu] [--toy]

The step is that of the loop at full size: compiled, in bfloat16 where the hardware has it.
``benchmarks/engine/step_model.py`` counts operations and bytes of each kernel, and states the
assumptions. ``benchmarks/engine/rates.py`` measures the peaks and the bandwidth in the same run.
The attainable time of a kernel is the larger of operations over peak and bytes over bandwidth. That
of a step is the sum over its kernels.

Which bandwidth counts: an array that was touched a short while ago may still be in a cache. For
each array that a kernel reads, the model adds up all distinct arrays that were touched since then.
The bandwidth of a working set of this size counts. So a map that the kernel before wrote may come
from a cache, and a map that was kept from the forward pass comes from memory. The report also has
the attainable time with all arrays in memory.

On a CPU one thread works, and the clock counts the processor time of this process. Other work on
the machine then matters only through shared caches, memory and clock rates. A GPU is measured in
wall time.

On a CPU the measured step is split: convolutions by PyTorch's profiler, the rest of the engine's
step (the compiled kernels, which the profiler does not tell apart), and the loop around it.

The report ``roofline-NETWORK.json`` in ``--reports`` lists all kernels too.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.engine.loop import Ours, labels_of
from benchmarks.engine.rates import Bound, Rates, Span, bounds, clock_of
from benchmarks.engine.step_model import (
    FORWARD,
    INPUT_GRADIENT,
    PARTS,
    network_layers,
    step_kernels,
)
from benchmarks.gpu.checks import random_teacher
from benchmarks.gpu.loop import CASES, TOY_CASES, Case
from benchmarks.machine import Warnings, describe, synchronise
from pipeline.device.precision import precision_on
from pipeline.device.threads import use_threads
from pipeline.inversion.invert import invert
from pipeline.storage import write_json

ELEMENT = {"bfloat16": 2, "float32": 4}  # bytes
# The rows of the measured step, and the parts of the model in each of them.
ROWS = {
    FORWARD: (FORWARD,),
    INPUT_GRADIENT: (INPUT_GRADIENT,),
    "compiled kernels": PARTS[2:7],
    "loop around the engine": PARTS[7:],
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much to measure.

    Attributes:
        span: Sizes of the peaks and bandwidths.
        readings: How often the clock is read.
        iterations: Iterations between two readings.
        profiled: Profiled steps on a CPU.
        compiled: Whether the engine is compiled.
    """

    span: Span
    readings: int
    iterations: int
    profiled: int
    compiled: bool


CPU = Size(Span(2048, 2**18, 2**29), 20, 1, 5, True)
# On a GPU the time to launch a kernel would count as traffic of a small working set.
GPU = Size(Span(8192, 2**25, 2**31), 10, 20, 0, True)
TOY = Size(Span(256, 2**16, 2**20), 3, 1, 1, False)


def measured_step(loop: Ours, size: Size) -> tuple[list[float], float]:
    """Measure the seconds of an iteration in each reading, and the median of the engine's part."""
    engine = loop.engine
    clock, step = clock_of(engine.teacher.device), engine.step
    inside, ends = list[float](), list[float]()
    done = 0

    def timed(
        images: Tensor, labels: Tensor, factors: Tensor, competes: bool = True
    ) -> tuple[Tensor, Tensor]:
        started = clock()
        result = step(images, labels, factors, competes)
        inside.append(clock() - started)
        return result

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if done % size.iterations == 0:
            synchronise(engine.teacher.device)
            ends.append(clock())

    engine.step = timed  # type: ignore[method-assign]
    with engine:
        invert(engine, loop.labels, 0, size.iterations * (size.readings + 1), progress)
    engine.step = step  # type: ignore[method-assign]
    readings = [(end - start) / size.iterations for start, end in itertools.pairwise(ends)]
    return readings, statistics.median(inside)


def convolution_shares(loop: Ours, steps: int) -> tuple[float, float]:
    """Profile the engine on a CPU: the share of its convolutions, forward and backward."""
    images = torch.randn(len(loop.labels), *loop.engine.teacher.shape)
    factors = torch.ones(len(images), 2)
    with loop.engine, profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            loop.engine.step(images, loop.labels, factors)
    events = seen.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    spent = {event.key: event.cpu_time_total / whole for event in events}
    forward = spent.get("aten::convolution", 0.0) + spent.get("aten::addmm", 0.0)
    return forward, spent.get("aten::convolution_backward", 0.0)


def split(loop: Ours, size: Size, step: float, inside: float) -> dict[str, float]:
    """Split the seconds of a measured step into :data:`ROWS`."""
    forward, backward = (inside * share for share in convolution_shares(loop, size.profiled))
    return dict(
        zip(ROWS, (forward, backward, inside - forward - backward, step - inside), strict=True)
    )


def run(case: Case, device: torch.device, size: Size) -> dict[str, Any]:
    """Count, measure and compare one step of a network."""
    warnings = Warnings()
    precision = precision_on(device, "auto")
    teacher = random_teacher(case.build(), case.shape, case.classes, case.batch, device)
    layers = network_layers(teacher.network, case.shape, case.batch)
    loop = Ours(teacher, labels_of(case.batch, case.classes), precision, size.compiled)
    loop.run(2)
    readings, inside = measured_step(loop, size)
    step = statistics.median(readings)
    parts = split(loop, size, step, inside) if device.type == "cpu" else {}
    rates = Rates(device, precision, size.span)
    found = bounds(step_kernels(layers, ELEMENT[precision]), rates)
    whole = summed(found)
    return {
        **{"network": case.name, "batch": case.batch, "side": case.side, "precision": precision},
        "machine": describe(device),
        "matrix_peak_gflops": rates.matrix / 1e9,
        "vector_peak_gflops": rates.vector / 1e9,
        "memory_gb_s": rates.memory / 1e9,
        "bandwidth_gb_s": {
            str(size): rates.measured[size] / 1e9 for size in sorted(rates.measured)
        },
        "parts": {part: summed([b for b in found if b.kernel.part == part]) for part in PARTS},
        "whole": whole,
        "measured_ms": 1e3 * step,
        "readings_ms": [1e3 * reading for reading in readings],
        "measured_parts_ms": {name: 1e3 * value for name, value in parts.items()},
        "share_of_attainable": whole["attainable_ms"] / (1e3 * step),
        "share_of_attainable_uncached": whole["uncached_ms"] / (1e3 * step),
        "kernels": [{**asdict(bound.kernel), **summed([bound])} for bound in found],
        "warnings": warnings.seen,
    }


def summed(found: Sequence[Bound]) -> dict[str, float]:
    """Add up the work and the attainable time of some kernels."""
    return {
        "gflop": sum(bound.kernel.matrix + bound.kernel.vector for bound in found) / 1e9,
        "megabytes": sum(bound.kernel.bytes for bound in found) / 1e6,
        "compute_ms": 1e3 * sum(bound.compute for bound in found),
        "traffic_ms": 1e3 * sum(bound.traffic for bound in found),
        "attainable_ms": 1e3 * sum(bound.attainable for bound in found),
        "uncached_ms": 1e3 * sum(max(bound.compute, bound.uncached) for bound in found),
    }


def table(report: dict[str, Any]) -> str:
    """Format the parts of the step, its measured time and the rates of the machine."""
    lines = [
        f"{report['network']}, {report['side']} px, batch {report['batch']}, {report['precision']}",
        "",
        "| part | GFLOP | MB | operations, ms | bytes, ms | attainable, ms | all in memory, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    columns = ("gflop", "megabytes", "compute_ms", "traffic_ms", "attainable_ms", "uncached_ms")
    for name, row in {**report["parts"], "whole step": report["whole"]}.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[key]:.4g}" for key in columns) + " |")
    lines += ["", "| measured | ms | attainable, ms | share |", "|---|---|---|---|"]
    for name, spent in report["measured_parts_ms"].items():
        least = sum(report["parts"][part]["attainable_ms"] for part in ROWS[name])
        lines.append(f"| {name} | {spent:.4g} | {least:.4g} | {least / spent:.0%} |")
    readings = report["readings_ms"]
    lines += [
        f"| whole step | {report['measured_ms']:.4g} | {report['whole']['attainable_ms']:.4g} "
        f"| {report['share_of_attainable']:.0%} |",
        "",
        f"whole step: median of {len(readings)} readings, {min(readings):.4g} to "
        f"{max(readings):.4g} ms; {report['share_of_attainable_uncached']:.0%} of the attainable "
        "with all arrays in memory",
        f"peaks: matrix {report['matrix_peak_gflops']:.4g}, vector "
        f"{report['vector_peak_gflops']:.4g} GFLOP/s",
        "bandwidth in GB/s by working set in MB: "
        + ", ".join(
            f"{int(size) / 1e6:.3g}: {rate:.4g}" for size, rate in report["bandwidth_gb_s"].items()
        ),
        "machine: " + ", ".join(f"{name} {fact}" for name, fact in report["machine"].items()),
    ]
    return "\n".join([*lines, *report["warnings"]]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    cases = {case.name.lower().replace("-", ""): index for index, case in enumerate(CASES)}
    parser.add_argument("--network", choices=sorted(cases), default="resnet20")
    parser.add_argument("--batch", type=int, help="that of benchmarks.gpu.loop by default")
    parser.add_argument("--device", help="cuda where there is a GPU, else cpu")
    parser.add_argument("--reports", type=Path, default=Path("reports/benchmarks"))
    parser.add_argument("--toy", action="store_true", help="toy size, not compiled, on the CPU")
    options = parser.parse_args(arguments)
    automatic = "cuda" if torch.cuda.is_available() and not options.toy else "cpu"
    device = torch.device(options.device or automatic)
    size = TOY if options.toy else GPU if device.type == "cuda" else CPU
    case = (TOY_CASES if options.toy else CASES)[cases[options.network]]
    if device.type == "cpu":
        use_threads(1)
    report = run(replace(case, batch=options.batch or case.batch), device, size)
    options.reports.mkdir(parents=True, exist_ok=True)
    write_json(options.reports / f"roofline-{options.network}.json", report)
    sys.stdout.write(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
