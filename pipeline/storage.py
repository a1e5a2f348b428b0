"""Files that are there whole or not at all, on a local path or at any URL, and their digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from fsspec import get_filesystem_class
from fsspec.asyn import AsyncFileSystem
from upath import UPath

from pipeline.errors import UserError

Location = Path | UPath
"""A real local path, or a place on another file system; both join and name their parts alike."""
REQUESTS = 32  # requests under way at once
S3_ATTEMPTS = 7  # with the SDK's growing pauses: about half a minute of errors is ridden out


class Stat(NamedTuple):
    size: int
    modified: float  # seconds since 1970


def location(text: str) -> Location:
    """The place that ``text`` names: ``protocol://bucket/prefix``, or a local path.

    Raises:
        UserError: nothing here speaks that protocol.
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
        options["use_listings_cache"] = False  # others write there too
    if protocol in ("s3", "s3a"):
        options["max_concurrency"] = (
            1  # s3fs does not retry a part of a file that it reads in parts
        )
        if "AWS_MAX_ATTEMPTS" not in os.environ:
            retries = {"mode": "legacy", "total_max_attempts": S3_ATTEMPTS}
            options["config_kwargs"] = {"retries": retries}
    place: UPath = UPath(text.rstrip("/"), **options)
    return place


@contextlib.contextmanager
def replacing(path: Location) -> Iterator[IO[bytes]]:
    """A binary file that takes the name ``path`` only when every byte of it is there.

    A local one is written to a temporary file beside ``path``, fsynced, renamed. Elsewhere it is
    written to a nameless local file and uploaded whole. An exception leaves ``path`` as it was
    and no temporary file.
    """
    if isinstance(path, Path):
        with _replacing_local(path) as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        with _asking(path):
            path.fs.pipe_file(path.path, file.read())


@contextlib.contextmanager
def _replacing_local(path: Path) -> Iterator[IO[bytes]]:
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
        if isinstance(error, OSError) and error.errno and error.filename is None:  # of a write
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_directory(path.parent)


def make_directory(directory: Path) -> None:
    """Make sure that ``directory`` is there, after a power loss too."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync_directory(directory.parent)


def write_bytes(path: Location, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step."""
    with replacing(path) as file:
        file.write(data)


def json_bytes(value: Any) -> bytes:
    """Readable JSON with sorted keys: equal values give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def write_json(path: Location, value: Any) -> None:
    """Replace ``path`` by the JSON of ``value``."""
    write_bytes(path, json_bytes(value))


def read_bytes(path: Location) -> bytes:
    """The whole content; FileNotFoundError if there is none, OSError if it cannot be had."""
    if isinstance(path, Path):
        return path.read_bytes()
    with _asking(path):
        data: bytes = path.fs.cat_file(path.path)
        return data


def read_many(paths: Sequence[Location]) -> list[bytes | None]:
    """The contents of files of one file system, some at a time; None for each that is not there."""
    if not paths or isinstance(paths[0], Path):
        return [_read_if_there(path) for path in paths]
    names = [path.path for path in paths if isinstance(path, UPath)]
    with _asking(paths[0]):
        found = paths[0].fs.cat_ranges(names, None, None, batch_size=REQUESTS, on_error="return")
        for result in found:
            if isinstance(result, BaseException) and not isinstance(result, FileNotFoundError):
                raise result
    return [None if isinstance(result, BaseException) else result for result in found]


def open_stream(path: Location) -> IO[bytes]:
    """A file to read from its beginning, without having all of it in memory."""
    if isinstance(path, Path):
        return path.open("rb")
    with _asking(path):
        file: IO[bytes] = path.fs.open(path.path, "rb")
        return file


def exists(path: Location) -> bool:
    """Whether ``path`` is a file."""
    if isinstance(path, Path):
        return path.is_file()
    with _asking(path):
        return bool(path.fs.isfile(path.path))


def size_of(path: Location) -> int:
    """Bytes of a file; -1 if there is none."""
    try:
        if isinstance(path, Path):
            return path.stat().st_size
        with _asking(path):
            return int(path.fs.info(path.path)["size"])
    except (FileNotFoundError, NotADirectoryError):
        return -1


def listing(root: Location) -> dict[str, Stat]:
    """Every file below ``root``: its name relative to it, and its size and time.

    One paged listing, however many files there are. Empty if ``root`` is not there.
    """
    if isinstance(root, Path):
        return dict(_scan(root, "")) if root.is_dir() else {}
    prefix = root.path.rstrip("/") + "/"
    with _asking(root):
        found = root.fs.find(root.path, detail=True)
    return {
        name.removeprefix(prefix): Stat(int(info["size"] or 0), _modified(info))
        for name, info in sorted(found.items())
        if name.startswith(prefix) and info["type"] == "file" and not name.endswith("/")
    }


def remove(path: Location) -> None:
    """Make sure that ``path`` is gone, after a power loss too."""
    with contextlib.suppress(FileNotFoundError):
        if isinstance(path, Path):
            path.unlink()
            _sync_directory(path.parent)
        else:
            with _asking(path):
                path.fs.rm_file(path.path)


def remove_all(root: Location, names: Iterable[str]) -> None:
    """Delete files below ``root``, in the order given where ``root`` is local."""
    if isinstance(root, Path):
        for name in names:
            (root / name).unlink(missing_ok=True)
    else:  # each by itself: `rm` of many takes brackets for patterns, and ends at one that is gone
        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(lambda name: remove(root / name), names))


def digest_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Location, algorithm: str = "sha256") -> str:
    if isinstance(path, Path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    return hashlib.new(algorithm, read_bytes(path)).hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def check_writable(directory: Location, key: str) -> None:
    """Raise :class:`UserError` now rather than after an hour if ``directory`` takes no file."""
    probe = directory / f".{uuid.uuid4().hex}.tmp"
    try:
        if isinstance(directory, Path):
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        else:
            write_bytes(probe, b"")
            remove(probe)
    except OSError as error:
        reason = error.strerror or str(error).removeprefix(f"{probe}: ")
        raise UserError(f"{key} {directory} cannot be written: {reason}") from error


@contextlib.contextmanager
def _asking(path: UPath) -> Iterator[None]:
    """Whatever a store's own library raises, as an OSError that names ``path``."""
    try:
        yield
    except Exception as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = re.sub(r"//[^/\s]*@", "//", reason)  # an endpoint with credentials
        raise kind(f"{path}: {reason}") from error


def _scan(directory: Path | os.DirEntry[str], prefix: str) -> Iterator[tuple[str, Stat]]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                yield from _scan(entry, f"{prefix}{entry.name}/")
                continue
            with contextlib.suppress(FileNotFoundError):  # another run's, gone by now
                facts = entry.stat()
                yield prefix + entry.name, Stat(facts.st_size, facts.st_mtime)


def _modified(info: dict[str, Any]) -> float:
    """When an object was written; each file system names that in its own way."""
    names = ("LastModified", "mtime", "updated", "last_modified", "created")
    value = next((info[name] for name in names if info.get(name) is not None), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float(value)


def _read_if_there(path: Location) -> bytes | None:
    try:
        return read_bytes(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
