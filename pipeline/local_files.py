"""Files on a local path, written and listed so that they survive a power loss."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

TEMPORARY = ".dreamshard."  # Every temporary file of ours begins with it, and no user's file does.


class Stat(NamedTuple):
    """Size of a file in bytes, and the time of its last change in seconds since 1970."""

    size: int
    modified: float


class UnfitFileError(OSError):
    """A pipe, a device, or a file that is too large to be what it should be."""


@contextlib.contextmanager
def replacing_local(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that is fsynced and renamed to ``path`` when the block ends.

    The permissions follow the process's umask. After an exception ``path`` is unchanged and the
    temporary file is deleted.
    """
    make_directory(path.parent)
    name = str(path.with_name(temporary_name(path.name)))
    # The kernel applies the process's umask to these permissions.
    handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _rename(name, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        # An error of `write` does not name its file.
        if isinstance(error, OSError) and error.errno and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_directory(path.parent)


def _rename(name: str, path: Path) -> None:
    try:
        os.replace(name, path)
    except IsADirectoryError as error:
        advice = "a folder is in the place of this file: move it elsewhere, then run again"
        raise IsADirectoryError(errno.EISDIR, advice, str(path)) from error


def temporary_name(name: str) -> str:
    """Return a new temporary name for a file, in the same directory as the file."""
    return f"{TEMPORARY}{name[:40]}.{uuid.uuid4().hex[:12]}.tmp"


def make_directory(directory: Path) -> None:
    """Create a directory and its parents, so that they survive a power loss."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync_directory(directory.parent)


def read_local(path: Path, most: float = math.inf) -> bytes:
    """Read a file of at most ``most`` bytes.

    Raises:
        UnfitFileError: The file is larger, or it is a pipe or a device, which could have no end.
        OSError: The file cannot be read.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise UnfitFileError(errno.EINVAL, "it is a pipe or a device: name a file", str(path))
        if facts.st_size > most:
            reason = f"it has {facts.st_size} bytes, and the limit is {most:.0f}"
            raise UnfitFileError(errno.EFBIG, reason, str(path))
        return file.read()


def _open_at_once(name: str, flags: int) -> int:
    try:
        return os.open(name, flags | os.O_NONBLOCK)  # else a pipe would wait for its writer
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise UnfitFileError(errno.EINVAL, "it is a socket: name a file", name) from error
        raise


def read_small(path: Path, most: float) -> bytes | None:
    """As :func:`read_local`; None if the file is larger, or a pipe or a device."""
    try:
        return read_local(path, most)
    except UnfitFileError:
        return None


def delete(path: Path) -> None:
    """Delete a file, so that the deletion survives a power loss."""
    path.unlink()
    _sync_directory(path.parent)


def scan(directory: Path | os.DirEntry[str], prefix: str) -> Iterator[tuple[str, Stat]]:
    """Yield the name, below ``prefix``, and the size and time of each file in a directory tree.

    Links to directories are not followed. Pipes, devices and links to nothing are left out.
    """
    for name, entry in _walk(directory, prefix):
        # Another process may delete its temporary file during the listing.
        with contextlib.suppress(FileNotFoundError):
            if entry.is_file():
                facts = entry.stat()
                yield name, Stat(facts.st_size, facts.st_mtime)


def irregular(directory: Path) -> dict[str, str]:
    """Find what is neither a plain file nor a directory in a directory tree.

    Returns:
        The name of each link, pipe, socket and device, and what it is in a few words.
    """
    found: dict[str, str] = {}
    for name, entry in _walk(directory, ""):
        if entry.is_symlink():
            missing = "" if os.path.exists(entry.path) else ", which does not exist"
            found[name] = f"a link to {os.readlink(entry.path)!a}{missing}"
        elif not entry.is_file(follow_symlinks=False):
            found[name] = "a pipe, a socket or a device"
    return found


def _walk(
    directory: Path | os.DirEntry[str], prefix: str
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the name of everything below a directory that is not a directory itself."""
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry


def delete_all(paths: Iterable[Path]) -> None:
    """Delete files that may be missing, so that the deletions survive a power loss."""
    directories = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            directories.add(path.parent)
    for directory in sorted(directories):
        _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
