"""Memory of a device: how much was used, whether an error says "too little", and freeing it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Iterator

import torch

from pipeline.errors import UserError

# Parts of messages of plain RuntimeErrors by which PyTorch reports too little memory.
_SIGNS = (
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` means that a GPU or this machine has too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextlib.contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Turn "too little memory" inside a ``with`` statement into advice for the user.

    Args:
        advice: Text of the error, which says what to change.

    Raises:
        UserError: The device has too little memory.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(advice) from error
        raise


def release(device: torch.device) -> None:
    """Free the memory that this process holds and no longer uses, on the CPU and ``device``."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # Only glibc has it.
    if trim is not None:
        trim(0)


def peak_memory(device: str | torch.device) -> int:
    """Return the peak memory so far in bytes: of the GPU or, on a CPU, of the process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
