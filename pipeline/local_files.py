"""Files on a local path, written and listed so that they survive a power loss."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple


class Stat(NamedTuple):
    """Size of a file in bytes, and the time of its last change in seconds since 1970."""

    size: int
    modified: float


@contextlib.contextmanager
def replacing_local(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that is fsynced and renamed to ``path`` when the block ends.

    After an exception ``path`` is unchanged and the temporary file is deleted.
    """
    make_directory(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        # An error of `write` does not name its file.
        if isinstance(error, OSError) and error.errno and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_directory(path.parent)


def make_directory(directory: Path) -> None:
    """Create a directory and its parents, so that they survive a power loss."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync_directory(directory.parent)


def delete(path: Path) -> None:
    """Delete a file, so that the deletion survives a power loss."""
    path.unlink()
    _sync_directory(path.parent)


def scan(directory: Path | os.DirEntry[str], prefix: str) -> Iterator[tuple[str, Stat]]:
    """Yield the name, below ``prefix``, and the size and time of each file in a directory tree."""
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                yield from scan(entry, f"{prefix}{entry.name}/")
                continue
            # Another process may delete its temporary file during the listing.
            with contextlib.suppress(FileNotFoundError):
                facts = entry.stat()
                yield prefix + entry.name, Stat(facts.st_size, facts.st_mtime)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
