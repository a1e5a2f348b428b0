"""Threads of a process on the CPU, and the memory that it keeps between two steps."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator

import torch

# Constants of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def use_threads(threads: int) -> None:
    """Let torch compute with ``threads`` threads, and keep freed memory for the next step."""
    torch.set_num_threads(threads)
    keep_memory()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread inside a ``with`` statement.

    Use it in the thread that hands out jobs. OpenMP keeps a team of threads for each Python thread
    that ever computed with several threads. If all teams together have more threads than there are
    cores, the threads sleep at each barrier instead of spinning, and later jobs are slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def keep_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the system.

    By default glibc maps each large tensor separately, and the system clears its pages in every
    step. Other C libraries have no such setting; this function then does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 64 * 2**20)
