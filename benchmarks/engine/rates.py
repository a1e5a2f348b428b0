"""Measure a machine's peaks and bandwidths, and the least time that they allow each kernel."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.engine.step_model import Kernel
from benchmarks.machine import matrix_peak, seconds
from pipeline.device.precision import Precision


@dataclass(frozen=True, slots=True)
class Span:
    """How large the measured matrices and arrays are.

    Attributes:
        side: The side of the square matrices of the peaks.
        smallest: Bytes of the smallest working set of the bandwidth, a power of two.
        largest: Bytes of the largest one, which no cache should hold.
    """

    side: int
    smallest: int
    largest: int


class Rates:
    """The peaks of a device, and its bandwidth for each size of a working set.

    The peaks are those of large matrix products: in the loop's number format, and in float32 (on a
    GPU without TF32) for all other operations. The bandwidth is that of the triad ``a = b + s c``.

    Attributes:
        matrix: FLOP/s of matrix products in the loop's number format.
        vector: FLOP/s in float32.
        measured: Bytes/s for each measured size of a working set in bytes.
    """

    def __init__(self, device: torch.device, precision: Precision, span: Span) -> None:
        clock, repeats = clock_of(device), 10 if device.type == "cuda" else 1
        self._device, self._span = device, span
        self.matrix = matrix_peak(device, span.side, repeats, getattr(torch, precision), clock)
        self.vector = matrix_peak(device, span.side, repeats, torch.float32, clock)
        self.measured: dict[int, float] = {}

    def bandwidth(self, working_set: int) -> float:
        """Return the bandwidth for the measured size that is nearest to ``working_set`` bytes."""
        nearest = 2 ** round(math.log2(max(1, working_set)))
        size = min(max(nearest, self._span.smallest), self._span.largest)
        if size not in self.measured:
            self.measured[size] = triad(self._device, size)
        return self.measured[size]

    @property
    def memory(self) -> float:
        """The bandwidth for the largest working set."""
        return self.bandwidth(self._span.largest)


def clock_of(device: torch.device) -> Callable[[], float]:
    """The clock of a device's measurements: wall time on a GPU, processor time on a CPU."""
    return time.perf_counter if device.type == "cuda" else time.process_time


def triad(device: torch.device, size: int) -> float:
    """Measure bytes/s of ``a = b + s c``, the best of five series.

    The arrays are float32 and have ``size`` bytes together. Each byte counts once.
    """
    count = size // 12
    a, b, c = (torch.ones(count, device=device) for _ in range(3))
    repeats = max(1, 2**27 // size)

    def run() -> None:
        for _ in range(repeats):
            torch.add(b, c, alpha=2.0, out=a)

    run()
    return 12 * count * repeats / min(seconds(run, device, clock_of(device)) for _ in range(5))


@dataclass(frozen=True, slots=True)
class Bound:
    """The least seconds of one kernel.

    Attributes:
        kernel: The kernel.
        compute: Seconds for its operations.
        traffic: Seconds for its bytes.
        uncached: Seconds for its bytes if all of them came from memory.
    """

    kernel: Kernel
    compute: float
    traffic: float
    uncached: float

    @property
    def attainable(self) -> float:
        return max(self.compute, self.traffic)


def bounds(kernels: Sequence[Kernel], rates: Rates) -> list[Bound]:
    """Compute the least seconds of each kernel of a step that follows an equal step."""
    return [
        Bound(
            kernel,
            kernel.matrix / rates.matrix + kernel.vector / rates.vector,
            sum(moved / rates.bandwidth(working_set) for moved, working_set in traffic),
            kernel.bytes / rates.memory,
        )
        for kernel, traffic in zip(kernels, working_sets(kernels), strict=True)
    ]


def working_sets(kernels: Sequence[Kernel]) -> list[list[tuple[int, int]]]:
    """List for each array that each kernel moves: its bytes, and the working set that counts.

    The working set of an array that is read is all distinct arrays that kernels touched since this
    array was touched last. That of an array that is written is what the kernel itself touches.
    """
    steps = [*kernels, *kernels]
    result = []
    for index, kernel in enumerate(kernels, len(kernels)):
        traffic = []
        for name, moved in kernel.reads.items():
            touched: dict[str, int] = {}
            for earlier in reversed(steps[:index]):
                for other, size in (*earlier.reads.items(), *earlier.writes.items()):
                    touched.setdefault(other, size)
                if name in touched:
                    break
            traffic.append((moved, sum(touched.values())))
        traffic += [(moved, kernel.bytes) for moved in kernel.writes.values()]
        result.append(traffic)
    return result
