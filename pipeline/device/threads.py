"""How a process uses the CPU that it was given: its threads, and the memory between two steps."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator

import torch

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def use_threads(threads: int) -> None:
    """Compute with ``threads`` threads, and keep freed memory for the next step."""
    torch.set_num_threads(threads)
    keep_memory()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread in this one, which will hand out jobs.

    OpenMP keeps a team for each thread that ever computed with several. Where all teams together
    have more threads than there are cores, they sleep at every barrier instead of spinning, and
    jobs of several threads are slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def keep_memory() -> None:
    """Tell glibc to give nothing back to the system. Elsewhere it does nothing.

    By default each large tensor is a mapping of its own, which the system clears page by page in
    every step anew.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 64 * 2**20)
