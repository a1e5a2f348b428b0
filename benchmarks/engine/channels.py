"""Measure compiled kernels of the inversion step on maps of equal bytes with 8 to 64 channels.

    python -m benchmarks.engine.channels [--megabytes 8] [--toy]

The kernels work on bfloat16 maps in channels-last layout, by one thread of a CPU. The first one is
the backward of ReLU and a frozen BatchNorm with the gradient of R_feature. It reads three maps and
writes one. The coefficients of each channel are computed inside the compiled kernel, as in the
step, or before it. The other kernel, "truth", is a ReLU that also stores which values are 0, as the
last ReLU of a step does.

Each kernel runs as ``torch.compile`` writes it, and with the loads and stores of
``pipeline/device/vector_loads.py``. The triad of ``benchmarks/engine/rates.py`` over as many bytes
says what the machine can do. The clock counts processor time.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine.rates import clock_of, triad
from benchmarks.machine import seconds
from pipeline.device.threads import use_threads
from pipeline.device.vector_loads import use_vector_loads

CPU = torch.device("cpu")
SIDE, CHANNELS = 32, (8, 16, 32, 64)
EPSILON = 1e-5


def inside(
    gradient: Tensor, active: Tensor, x: Tensor, variance: Tensor, mean: Tensor, slope: Tensor
) -> Tensor:
    """The gradient to ``x``, with the coefficients computed from statistics of each channel."""
    factor = (variance + EPSILON).rsqrt()
    own = slope / (variance + EPSILON) / x.numel() * x.shape[1]
    passed = torch.where(active <= 0, 0.0, gradient.float())
    return (passed * factor + (x.float() - mean) * own).bfloat16()


def before(
    gradient: Tensor, active: Tensor, x: Tensor, factor: Tensor, mean: Tensor, own: Tensor
) -> Tensor:
    """The same gradient with given coefficients."""
    passed = torch.where(active <= 0, 0.0, gradient.float())
    return (passed * factor + (x.float() - mean) * own).bfloat16()


def truth(gradient: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """A ReLU, and which of its values are 0."""
    rectified = torch.relu(gradient.float()).bfloat16()
    return rectified, rectified <= 0


# Each kernel with the bytes that it reads and writes for a value of a map.
KERNELS: dict[Callable[..., Any], int] = {inside: 8, before: 8, truth: 5}


def row(channels: int, size: int, compiled: bool) -> list[float]:
    """Measure GB/s of each kernel on maps of ``size`` bytes, the best of 15 calls each."""
    shape = (size // (2 * channels * SIDE * SIDE), channels, SIDE, SIDE)
    maps = [torch.randn(shape).bfloat16().to(memory_format=torch.channels_last) for _ in range(3)]
    statistics = [torch.rand(1, channels, 1, 1) + 0.5 for _ in range(3)]
    rates = []
    for function, each in KERNELS.items():
        kernel = torch.compile(function, dynamic=False) if compiled else function
        for _ in range(3):
            kernel(*maps, *statistics)
        call = functools.partial(kernel, *maps, *statistics)
        best = min(seconds(call, CPU, clock_of(CPU)) for _ in range(15))
        rates.append(each * maps[0].numel() / best / 1e9)
    return rates


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=8, help="size of a map")
    parser.add_argument("--toy", action="store_true", help="small maps, not compiled")
    options = parser.parse_args(arguments)
    use_threads(1)
    size = 2**17 if options.toy else options.megabytes * 2**20
    lines = [
        "| channels | coefficients inside, GB/s | before | truth | with our loads and stores: "
        "inside | before | truth | triad |",
        f"|{'---|' * 8}",
    ]
    plain = {channels: row(channels, size, not options.toy) for channels in CHANNELS}
    torch._dynamo.reset()
    use_vector_loads()
    for channels in CHANNELS:
        ours = row(channels, size, not options.toy)
        rates = (*plain[channels], *ours, triad(CPU, 4 * size) / 1e9)
        lines.append(f"| {channels} | " + " | ".join(f"{rate:.3g}" for rate in rates) + " |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
