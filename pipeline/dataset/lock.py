"""Locks on output directories: one run writes at a time, and a second one learns who does.

The lock of a local directory is the kernel's, on a file inside the directory. So it holds for every
path and every mount through which the directory is seen. The kernel releases the lock when the
process ends, in whatever way, so a dead run never blocks the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.dataset.held_lock import (
    Holder,
    Lock,
    NoLockError,
    in_use,
    other_parameters,
    parse_holder,
)
from pipeline.dataset.layout import LOCK
from pipeline.dataset.remote_lock import has_locks, locked_at_url
from pipeline.errors import UserError
from pipeline.storage import Location

# Runs that share a lock hold it alone for a moment, when they write or delete its file.
PATIENCE = 2.0  # Seconds that a run waits for such a moment to end, if it cannot see who holds it,
SHARED_PATIENCE = 60.0  # and if it sees a run with which it may share the lock.


@contextlib.contextmanager
def locked(directory: Location, key: str, parameters: str | None = None) -> Iterator[Lock]:
    """Lock ``directory`` during the block.

    At a URL of S3 the lock is an object. At other URLs there is no lock: two runs with the same
    parameters write the same bytes, and each file is replaced in one step.

    Args:
        directory: the directory to lock. It is created if it is missing.
        key: the parameter that names the directory, for errors.
        parameters: a digest of the dataset's parameters, to share the lock with other runs of the
            same parameters, such as runs on other shards; None to hold it alone.

    Yields:
        The lock. Its ``check`` notices a lock that was lost.

    Raises:
        TryAgainError: another run holds the lock, or holds it for other parameters.
        NoLockError: the lock cannot be taken, for example on a read-only file system.
        UserError: a link, a folder or a file of another program is in the place of the lock.
    """
    if not isinstance(directory, Path):
        if has_locks(directory):
            with locked_at_url(directory, key, parameters) as lock:
                yield lock
        else:
            yield Lock(None, key, Holder.this_process(parameters))
        return
    directory = directory.resolve()
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file, holder = _acquire(path, key, parameters)
    except OSError as error:
        raise NoLockError(
            f"{key} {directory} cannot be locked by {path} ({error.strerror}): name a directory "
            "that can be written, on a file system with locks"
        ) from error
    with file:
        try:
            yield Lock(path, key, holder)
        finally:
            _release(file, path, shared=parameters is not None)


@contextlib.contextmanager
def reading(directory: Location, key: str, parameters: str) -> Iterator[Lock | None]:
    """Keep runs with other parameters, and runs on all shards, out of ``directory``.

    A directory that does not exist, or in which nobody can write, is read without a lock.

    Args:
        directory: the directory to read.
        key: the parameter that names the directory, for errors.
        parameters: a digest of the dataset's parameters.

    Yields:
        The lock, or None without one.
    """
    with contextlib.ExitStack() as held:
        lock = None
        if not isinstance(directory, Path) or directory.is_dir():
            with contextlib.suppress(NoLockError):
                lock = held.enter_context(locked(directory, key, parameters))
        yield lock


def _acquire(path: Path, key: str, parameters: str | None) -> tuple[IO[bytes], Holder]:
    """Open and lock the file of the lock, and find or write its holder."""
    started = time.monotonic()
    while True:
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(_open(path, key))
            holder = None
            if _flock(file, fcntl.LOCK_EX):
                if not _is_at(file, path):
                    continue  # The run before this one has just deleted its file.
                holder = _write_holder(file, parameters)
                if parameters is None or _flock(file, fcntl.LOCK_SH):
                    opened.pop_all()
                    return file, holder
            elif parameters is not None and _flock(file, fcntl.LOCK_SH) and _is_at(file, path):
                file.seek(0)
                holder = parse_holder(file.read())
                if holder is not None and holder.parameters == parameters:
                    opened.pop_all()
                    return file, holder
                if holder is not None and holder.parameters is not None:
                    raise other_parameters(key, path.parent, holder)
            file.seek(0)
            found = parse_holder(file.read())
            shares = found is not None and found.parameters == parameters
            patience = SHARED_PATIENCE if shares else PATIENCE
            if parameters is None or time.monotonic() - started > patience:
                raise in_use(key, path.parent, found)
        time.sleep(random.uniform(0.01, 0.05))


def _open(path: Path, key: str) -> IO[bytes]:
    """Open the file of the lock, or make it. A link is not followed: it leads to another's file.

    Raises:
        UserError: something else is in the place of the lock. It is not changed.
    """
    kind = _kind(path)
    if kind is None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.fdopen(os.open(path, flags, 0o666), "a+b")
        if _may_be_lock(file):
            return file
        file.close()
        kind = "no file of dreamshard"
    raise UserError(
        f"{key} {path.parent}: {path.name} is {kind}, but dreamshard writes its lock there: move "
        "it elsewhere, then run the command again"
    )


def _kind(path: Path) -> str | None:
    """What lies in the place of a lock's file; None for a plain file, and for nothing at all."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(mode):
        return f"a link to {os.readlink(path)!a}"
    if stat.S_ISDIR(mode):
        return "a folder"
    return None if stat.S_ISREG(mode) else "a pipe, a socket or a device"


def _may_be_lock(file: IO[bytes]) -> bool:
    """Whether a file can be a lock: JSON, or the blank bytes that a power loss leaves of it."""
    file.seek(0)
    start = file.read(4096).strip(b"\0 \n")
    return not start or start.startswith(b"{")


def _flock(file: IO[bytes], kind: int) -> bool:
    """Take the kernel's lock if it is free."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether ``path`` still is the open file, and not another one of the same name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(file: IO[bytes], parameters: str | None) -> Holder:
    holder = Holder.this_process(parameters)
    file.truncate(0)
    file.write(holder.to_bytes())
    file.flush()
    return holder


def _release(file: IO[bytes], path: Path, shared: bool) -> None:
    """Delete the file if no other run shares the lock. Closing the file then ends the lock."""
    with contextlib.suppress(OSError):
        if (not shared or _flock(file, fcntl.LOCK_EX)) and _is_at(file, path):
            path.unlink()
