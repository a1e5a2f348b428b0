"""The machine that a benchmark runs on: its device, its description and its clock."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_QUERY = "name,driver_version,utilization.gpu,memory.used,clocks.sm,power.draw"


def choose_device(toy: bool) -> torch.device:
    """Return the GPU, or the CPU for a toy run; end the program where there is no GPU."""
    if toy:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU on this machine: use --toy for a toy run on the CPU")
    return torch.device("cuda")


def describe(device: torch.device) -> dict[str, Any]:
    """Describe hardware, versions and load. ``card`` is the present answer of nvidia-smi."""
    facts: dict[str, Any] = {
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "triton", "numpy")},
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": card.name,
            "gpu_memory_gib": round(card.total_memory / 2**30, 1),
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
            "tf32_matrix_products": torch.backends.cuda.matmul.allow_tf32,
            "card": _card(),
        }
    return facts


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    work: Callable[[], object],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure how long ``work`` takes by ``clock``, the work on the device included."""
    synchronise(device)
    started = clock()
    work()
    synchronise(device)
    return clock() - started


def matrix_peak(
    device: torch.device,
    side: int,
    repeats: int = 10,
    dtype: torch.dtype = torch.bfloat16,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure the FLOP/s of a large matrix product: the best of five series of products."""
    left, right = torch.randn(2, side, side, device=device).to(dtype)

    def products() -> None:
        for _ in range(repeats):
            torch.mm(left, right)

    products()
    return 2 * side**3 * repeats / min(seconds(products, device, clock) for _ in range(5))


class Warnings(logging.Handler):
    """Collects warnings of the pipeline for the report, as that a network did not compile."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []
        logging.getLogger("pipeline").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _card() -> str | None:
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
