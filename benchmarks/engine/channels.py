"""Measure a compiled kernel of the inversion step on maps of equal bytes with 8 to 64 channels.

    python -m benchmarks.engine.channels [--megabytes 8] [--toy]

The kernel is the backward of ReLU and a frozen BatchNorm with the gradient of R_feature, on
bfloat16 maps in channels-last layout, by one thread of a CPU. It reads three maps and writes one.
The coefficients of each channel are computed inside the compiled kernel, as in the step, or before
it. Each kernel runs as ``torch.compile`` writes it, and with half registers
(``pipeline/device/half_registers.py``). The triad of ``benchmarks/engine/rates.py`` over as many
bytes says what the machine can do. The clock counts processor time.
"""

from __future__ import annotations

import argparse
import functools
import sys

import torch
from torch import Tensor

from benchmarks.engine.rates import clock_of, triad
from benchmarks.machine import seconds
from pipeline.device.half_registers import use_half_registers
from pipeline.device.threads import use_threads

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


def row(channels: int, size: int, compiled: bool) -> tuple[float, float]:
    """Measure GB/s of both kernels on maps of ``size`` bytes, the best of 15 calls each."""
    shape = (size // (2 * channels * SIDE * SIDE), channels, SIDE, SIDE)
    maps = [torch.randn(shape).bfloat16().to(memory_format=torch.channels_last) for _ in range(3)]
    statistics = [torch.rand(1, channels, 1, 1) + 0.5 for _ in range(3)]
    rates = []
    for function in (inside, before):
        kernel = torch.compile(function, dynamic=False) if compiled else function
        for _ in range(3):
            kernel(*maps, *statistics)
        call = functools.partial(kernel, *maps, *statistics)
        best = min(seconds(call, CPU, clock_of(CPU)) for _ in range(15))
        rates.append(4 * 2 * maps[0].numel() / best / 1e9)
    return rates[0], rates[1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=8, help="size of a map")
    parser.add_argument("--toy", action="store_true", help="small maps, not compiled")
    options = parser.parse_args(arguments)
    use_threads(1)
    size = 2**17 if options.toy else options.megabytes * 2**20
    lines = [
        "| channels | coefficients inside, GB/s | before, GB/s | with half registers: inside "
        "| before | triad, GB/s |",
        "|---|---|---|---|---|---|",
    ]
    plain = {channels: row(channels, size, not options.toy) for channels in CHANNELS}
    torch._dynamo.reset()
    use_half_registers()
    for channels in CHANNELS:
        half = row(channels, size, not options.toy)
        rates = (*plain[channels], *half, triad(CPU, 4 * size) / 1e9)
        lines.append(f"| {channels} | " + " | ".join(f"{rate:.3g}" for rate in rates) + " |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
