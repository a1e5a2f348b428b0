"""Files on a local path or at a URL: atomic writes, reads, listings and digests.

A file written here is complete or absent; no reader ever sees a part of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from fsspec import get_filesystem_class
from fsspec.asyn import AsyncFileSystem
from upath import UPath

from pipeline.errors import UserError
from pipeline.local_files import Stat as Stat
from pipeline.local_files import (
    delete,
    delete_all,
    read_local,
    read_small,
    replacing_local,
    scan,
)

Location = Path | UPath
"""A local path, or a path on another file system. Both have the same methods for names."""
REQUESTS = 32  # Requests to a store at the same time.
# With the SDK's growing pauses, seven attempts outlast about half a minute of errors.
S3_ATTEMPTS = 7


def location(text: str) -> Location:
    """Parse a path or a URL.

    Args:
        text: A local path, ``file://PATH`` or ``protocol://bucket/prefix``.

    Raises:
        UserError: No installed package supports the protocol.

    Example::

        location("data/synthetic")  # a pathlib.Path
        location("s3://bucket/prefix")  # a upath.UPath; needs the extra `s3`
    """
    protocol, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if protocol in ("file", "local"):
        return Path(rest)
    try:
        implementation = get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise UserError(f"{text} cannot be opened: {error}") from error
    options: dict[str, Any] = {}
    if issubclass(implementation, AsyncFileSystem):
        options["use_listings_cache"] = False  # Other machines write to the same place.
    if protocol in ("s3", "s3a"):
        # s3fs reads a large file in parts and does not repeat the request of one part.
        options["max_concurrency"] = 1
        if "AWS_MAX_ATTEMPTS" not in os.environ:
            retries = {"mode": "legacy", "total_max_attempts": S3_ATTEMPTS}
            options["config_kwargs"] = {"retries": retries}
    place: UPath = UPath(text.rstrip("/"), **options)
    return place


@contextlib.contextmanager
def replacing(path: Location) -> Iterator[IO[bytes]]:
    """Open a binary file that gets the name ``path`` when the ``with`` statement ends.

    A local file is written under a temporary name in the same directory, fsynced and renamed. For
    a URL the content is written to an unnamed local file and then uploaded in one request. After
    an exception ``path`` is unchanged and no temporary file remains.

    Args:
        path: File to create or replace.

    Raises:
        OSError: The file cannot be written. The error names ``path``.

    Example::

        with replacing(Path("data/notes.bin")) as file:
            file.write(b"...")
    """
    if isinstance(path, Path):
        with replacing_local(path) as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        with requesting(path):
            path.fs.pipe_file(path.path, file.read())


def write_bytes(path: Location, data: bytes) -> None:
    """Create or replace a file in one step."""
    with replacing(path) as file:
        file.write(data)


def json_bytes(value: Any) -> bytes:
    """Encode a value as readable JSON with sorted keys: equal values give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def write_json(path: Location, value: Any) -> None:
    """Create or replace a JSON file in one step."""
    write_bytes(path, json_bytes(value))


def read_bytes(path: Location) -> bytes:
    """Read a file.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file cannot be read.
    """
    if isinstance(path, Path):
        return read_local(path)
    with requesting(path):
        data: bytes = path.fs.cat_file(path.path)
        return data


def read_many(paths: Sequence[Location], most: float = math.inf) -> list[bytes | None]:
    """Read several files of one file system, ``REQUESTS`` at a time.

    Args:
        paths: Files on the same file system.
        most: Largest local file to read, in bytes.

    Returns:
        The content of each file; None for a missing one, a larger one, and a local pipe or device.

    Raises:
        OSError: A file cannot be read.
    """
    if not paths or isinstance(paths[0], Path):
        return [_read_or_none(path, most) for path in paths]
    names = [path.path for path in paths if isinstance(path, UPath)]
    with requesting(paths[0]):
        results = paths[0].fs.cat_ranges(names, None, None, batch_size=REQUESTS, on_error="return")
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, FileNotFoundError):
                raise result
    return [None if isinstance(result, BaseException) else result for result in results]


def open_stream(path: Location) -> IO[bytes]:
    """Open a file to read it from its beginning, without loading all of it into memory."""
    if isinstance(path, Path):
        return path.open("rb")
    with requesting(path):
        file: IO[bytes] = path.fs.open(path.path, "rb")
        return file


def exists(path: Location) -> bool:
    """Return whether there is a file ``path``."""
    if isinstance(path, Path):
        return path.is_file()
    with requesting(path):
        return bool(path.fs.isfile(path.path))


def size_of(path: Location) -> int:
    """Return the size of a file in bytes, or -1 if there is no such file."""
    try:
        if isinstance(path, Path):
            return path.stat().st_size
        with requesting(path):
            return int(path.fs.info(path.path)["size"])
    except (FileNotFoundError, NotADirectoryError):
        return -1


def listing(root: Location) -> dict[str, Stat]:
    """List all files below a directory, in one paged listing.

    Args:
        root: A directory.

    Returns:
        Size and time of each file, by its path relative to ``root`` with ``/``, in the order of
        the names. Empty if there is no such directory.
    """
    if isinstance(root, Path):
        return dict(scan(root, "")) if root.is_dir() else {}
    prefix = root.path.rstrip("/") + "/"
    with requesting(root):
        files = root.fs.find(root.path, detail=True)
    return {
        name.removeprefix(prefix): Stat(int(info["size"] or 0), modified(info))
        for name, info in sorted(files.items())
        if name.startswith(prefix) and info["type"] == "file" and not name.endswith("/")
    }


def remove(path: Location) -> None:
    """Delete a file if there is one, so that the deletion survives a power loss."""
    with contextlib.suppress(FileNotFoundError):
        if isinstance(path, Path):
            delete(path)
        else:
            with requesting(path):
                path.fs.rm_file(path.path)


def remove_all(root: Location, names: Iterable[str]) -> None:
    """Delete several files below a directory.

    Args:
        root: A directory.
        names: Paths relative to ``root``. On return the deletions survive a power loss.
    """
    if isinstance(root, Path):
        delete_all(root / name for name in names)
    else:
        # fsspec's `rm` of many files reads brackets as patterns and stops at a missing file.
        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(lambda name: remove(root / name), names))


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Location, algorithm: str = "sha256") -> str:
    """Return the digest of a file's content, in hexadecimal."""
    if isinstance(path, Path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    return hashlib.new(algorithm, read_bytes(path)).hexdigest()


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hexadecimal."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


@contextlib.contextmanager
def requesting(path: UPath) -> Iterator[None]:
    """Turn any error of a store's library into an OSError that names ``path``."""
    try:
        yield
    except Exception as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = re.sub(r"//[^/\s]*@", "//", reason)  # The URL may contain credentials.
        raise kind(f"{path}: {reason}") from error


def modified(info: dict[str, Any]) -> float:
    """Return the time of an object's last change, whose name differs between file systems."""
    names = ("LastModified", "mtime", "updated", "last_modified", "created")
    value = next((info[name] for name in names if info.get(name) is not None), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float(value)


def _read_or_none(path: Location, most: float) -> bytes | None:
    try:
        return read_small(path, most) if isinstance(path, Path) else read_bytes(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
