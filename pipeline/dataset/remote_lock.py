"""Locks at URLs of S3: objects that are created with the condition ``If-None-Match: *``.

A run that writes to the dataset alone creates the object :data:`LOCK`. The store refuses a second
creation. Each run of a shard range creates another object, with a random name. A run first creates
its object and then looks for the objects of other runs, so of two runs at least one sees the other.

A run renews its object every minute. An object that was not renewed for ten minutes, or whose
process has ended on this host, counts as left by a killed run.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from upath import UPath

from pipeline.dataset.held_lock import (
    Holder,
    Lock,
    NoLockError,
    in_use,
    other_parameters,
    parse_holder,
)
from pipeline.dataset.layout import LOCK, is_lock, shared_lock_name
from pipeline.storage import modified, read_many, remove, requesting, write_bytes

log = logging.getLogger(__name__)
PROTOCOLS = ("s3", "s3a")  # Their library knows conditional writes.
REFRESH = 60.0  # Seconds between two renewals of a lock.
EXPIRY = 600.0  # Seconds without a renewal after which a lock counts as left by a killed run.
_REFUSED = (409, 412)  # HTTP: another writer was faster; the condition does not hold.


def has_locks(directory: UPath) -> bool:
    """Whether the store of a URL has conditional writes, which locks need."""
    return directory.protocol in PROTOCOLS


@contextlib.contextmanager
def locked_at_url(directory: UPath, key: str, parameters: str | None) -> Iterator[Lock]:
    """Lock ``directory`` during the block; see :func:`pipeline.dataset.lock.locked`."""
    holder = Holder.this_process(parameters)
    name = LOCK if parameters is None else shared_lock_name(holder.token)
    lock = Lock(directory / name, key, holder)
    path = directory / name
    try:
        if parameters is None:
            _create(path, key, holder)
        else:
            write_bytes(path, holder.to_bytes())
    except OSError as error:
        if getattr(error.__cause__, "errno", None) == errno.ENOSYS:
            log.warning("%s %s: this store has no conditional writes, so no lock", key, directory)
            yield Lock(None, key, holder)
            return
        raise NoLockError(f"{key} {directory} cannot be locked: {error}") from error
    try:
        _refuse_others(directory, lock)
        with _renewed(path, holder):
            yield lock
    finally:
        with contextlib.suppress(OSError):
            if _holder_at(path) in (holder, None):
                remove(path)


def _create(path: UPath, key: str, holder: Holder) -> None:
    """Create the lock of a run that works alone, or take over that of a killed run."""
    found = None
    for _ in range(3):
        if _put(path, holder, mode="create"):
            return
        found = _holder_at(path)
        if found == holder:  # The store has created the object, and its answer was lost.
            return
        with contextlib.suppress(FileNotFoundError):  # The other run has just ended: try again.
            etag = _etag_if_expired(path, found)
            if etag is not None and _put(path, holder, IfMatch=etag):
                return
            break
    raise in_use(key, path.parent, found)


def _put(path: UPath, holder: Holder, **condition: Any) -> bool:
    """Write the object if the condition holds."""
    with requesting(path):
        try:
            path.fs.pipe_file(path.path, holder.to_bytes(), **condition)
        except Exception as error:
            response = getattr(error.__cause__, "response", None) or {}
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(error, FileExistsError) or status in _REFUSED:
                return False
            raise
    return True


def _refuse_others(directory: UPath, lock: Lock) -> None:
    """Refuse to work next to runs that do not share this lock. Locks of killed runs are deleted.

    Raises:
        TryAgainError: another run holds the directory.
    """
    with requesting(directory):
        entries = directory.fs.ls(directory.path, detail=True, refresh=True)
    names = [str(entry["name"]).rpartition("/")[2] for entry in entries]
    for name in names:
        path = directory / name
        if not is_lock(name) or path == lock.path:
            continue
        other = _holder_at(path)
        if other is None:  # That run has just ended.
            continue
        if _is_left(path, other):
            if name != LOCK:
                remove(path)
        elif lock.holder.parameters is None or other.parameters is None:
            raise in_use(lock.key, directory, other)
        elif lock.holder.parameters != other.parameters:
            raise other_parameters(lock.key, directory, other)


def _holder_at(path: UPath) -> Holder | None:
    (text,) = read_many([path])
    return parse_holder(text)


def _etag_if_expired(path: UPath, holder: Holder | None) -> str | None:
    """The version of a lock that a killed run left; None if its run may be alive."""
    with requesting(path):
        facts = path.fs.info(path.path, refresh=True)
    if (holder is not None and holder.is_gone()) or time.time() - modified(facts) > EXPIRY:
        return str(facts["ETag"])
    return None


def _is_left(path: UPath, holder: Holder) -> bool:
    """Whether a run has ended, or was killed, that held the lock a moment ago."""
    try:
        return _etag_if_expired(path, holder) is not None
    except FileNotFoundError:
        return True


@contextlib.contextmanager
def _renewed(path: UPath, holder: Holder) -> Iterator[None]:
    """Write the object again every minute, as long as it is this run's."""
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(REFRESH):
            with contextlib.suppress(OSError):
                if _holder_at(path) == holder:
                    write_bytes(path, holder.to_bytes())

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
