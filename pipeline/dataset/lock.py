"""One run at a time on an output directory; a second one is told who holds it."""

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
    """Where the lock would be, none can be taken by anyone."""


@contextlib.contextmanager
def locked(directory: Location, key: str, shared: bool = False) -> Iterator[None]:
    """Hold ``directory`` for the length of the block.

    The lock is the kernel's, on a file beside the directory that names the holder: it ends with
    the process that took it, however that ends, so a dead run never blocks the next. An object
    store has no such lock, and none is taken there: what runs with the same parameters write is
    the same, and each file is replaced whole.

    Args:
        key: the parameter that names ``directory``, for the error.
        shared: other shared holders are welcome; runs on parts of one dataset are.

    Raises:
        TryAgainError: another run holds it.
        NoLockError: there can be no lock.
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
                "wait for it, stop it, or choose another directory"
            ) from None
        except OSError as error:
            raise NoLockError(
                f"{key} {directory}: its lock {path} cannot be taken ({error.strerror}): name a "
                "directory inside one that can be written, on a file system with locks"
            ) from error
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": since}, file)
        file.flush()
        yield


@contextlib.contextmanager
def reading(directory: Location, key: str) -> Iterator[None]:
    """Keep others from changing ``directory`` for the length of the block; what lies where nothing
    can be written is read without."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(NoLockError):
            held.enter_context(locked(directory, key, shared=True))
        yield


def _holder(path: Path) -> str:
    try:
        facts = json.loads(path.read_text())
        return f"pid {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has only just begun"
