"""Locks on output directories: one run writes at a time, and a second one learns who does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import TryAgainError, UserError
from pipeline.storage import Location


class NoLockError(UserError):
    """The file system does not let anybody take the lock."""


@contextlib.contextmanager
def locked(directory: Location, key: str, shared: bool = False) -> Iterator[None]:
    """Lock ``directory`` during the block.

    The lock is the kernel's, on a file next to the directory. The file names the process that holds
    the lock. The kernel releases it when the process ends, in whatever way, so a dead run never
    blocks the next one.

    An object store has no such lock, and none is taken there. Two runs with the same parameters
    write the same bytes, and each file is replaced in one step.

    Args:
        directory: the directory to lock. It need not exist.
        key: the parameter that names the directory, for errors.
        shared: allow other holders that share the lock, such as runs on other shards of a dataset.

    Raises:
        TryAgainError: another run holds the lock.
        NoLockError: the lock cannot be taken, for example on a read-only file system.
    """
    if not isinstance(directory, Path):
        yield
        return
    directory = directory.resolve()
    path = directory.parent / f".{directory.name}.lock"
    with contextlib.ExitStack() as opened:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(path.open("a+"))
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryAgainError(
                f"{key} {directory} is in use by another run ({_holder(path)}): "
                "wait until that run ends, stop it, or name another directory"
            ) from None
        except OSError as error:
            raise NoLockError(
                f"{key} {directory} cannot be locked by {path} ({error.strerror}): name a "
                "directory whose parent can be written, on a file system with locks"
            ) from error
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": since}, file)
        file.flush()
        yield


@contextlib.contextmanager
def reading(directory: Location, key: str) -> Iterator[None]:
    """Keep other runs from changing ``directory`` during the block.

    A directory that cannot be locked, because nobody can write there, is read without a lock.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(NoLockError):
            held.enter_context(locked(directory, key, shared=True))
        yield


def _holder(path: Path) -> str:
    try:
        facts = json.loads(path.read_text())
        return f"pid {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which has just started"
