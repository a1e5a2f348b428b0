"""Memory: what was used, whether an error means that there was too little, and giving it back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Iterator

import torch

from pipeline.errors import UserError

# What PyTorch says in a plain RuntimeError.
_SIGNS = (
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a GPU or this machine had too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextlib.contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Too little memory in this block is a :class:`UserError` that says ``advice``."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(advice) from error
        raise


def release(device: torch.device) -> None:
    """Give back what this process holds on ``device`` and no longer uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def peak_memory(device: str | torch.device) -> int:
    """The most so far, in bytes: the GPU's or, on a CPU, the whole process's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
