"""Small hidden files that say what becomes of a shard that is not complete: nobody relies on them.

``metadata/.NNNNNN.running.json`` names the process that makes the shard and is written again every
minute while it lives. ``metadata/.NNNNNN.failed.json`` holds the error that ended the last attempt.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.execution.executor import Stopped
from pipeline.storage import Location, Stat, json_bytes, read_many, remove_all, write_bytes

Kind = Literal["running", "failed"]
MARKER = re.compile(r"metadata/\.(\d{6,})\.(running|failed)\.json")
REFRESH, DEAD = 60.0, 600.0  # seconds: between two signs of life; without one, the run is dead


@contextlib.contextmanager
def marked(root: Location, number: int) -> Iterator[Callable[[], None]]:
    """Say, while the block lasts, that shard ``number`` is being made here; and if it fails, why.

    Yields what to call often: it gives a sign of life when one is due.
    """
    facts = {"host": socket.gethostname(), "pid": os.getpid(), "since": round(time.time())}
    due = 0.0

    def alive() -> None:
        nonlocal due
        if time.monotonic() >= due:
            _write(root, number, "running", facts)
            due = time.monotonic() + REFRESH

    alive()
    _remove(root, number, "failed")
    try:
        yield alive
    except Stopped:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        _write(root, number, "failed", {**facts, "error": text})
        raise
    finally:
        _remove(root, number, "running")


def read_markers(root: Location, files: Mapping[str, Stat]) -> dict[int, tuple[Kind, str]]:
    """Of each shard that a marker in ``files`` speaks of: that it is running, or how it failed.

    A run that was killed leaves its marker; that counts no longer once its process is gone from
    this host, or ten minutes have passed without a sign of life.
    """
    names = [name for name in files if MARKER.fullmatch(name)]
    found: dict[int, tuple[Kind, str]] = {}
    for name, text in zip(names, read_many([root / name for name in names]), strict=True):
        match = MARKER.fullmatch(name)
        assert match is not None
        facts, number = _facts(text), int(match[1])
        if match[2] == "running":
            if time.time() - files[name].modified < DEAD and not _is_gone(facts):
                found[number] = ("running", f"{facts.get('host')}, pid {facts.get('pid')}")
        elif number not in found:
            found[number] = ("failed", str(facts.get("error")))
    return found


def _facts(text: bytes | None) -> dict[str, Any]:
    try:
        return dict(json.loads(text or b""))
    except (ValueError, TypeError):  # read while it was being written
        return {}


def _is_gone(facts: dict[str, Any]) -> bool:
    """Whether it is known that the process that wrote a marker is no more."""
    if facts.get("host") != socket.gethostname() or not isinstance(facts.get("pid"), int):
        return False
    try:
        os.kill(facts["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False


def _path(root: Location, number: int, kind: Kind) -> Location:
    return root / "metadata" / f".{number:06d}.{kind}.json"


def _write(root: Location, number: int, kind: Kind, facts: dict[str, Any]) -> None:
    path = _path(root, number, kind)
    with contextlib.suppress(OSError):  # a shard must not fail for want of its marker
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(json_bytes(facts))  # no fsync: it says nothing after a power loss
        else:
            write_bytes(path, json_bytes(facts))


def _remove(root: Location, number: int, kind: Kind) -> None:
    with contextlib.suppress(OSError):
        remove_all(root, [f"metadata/.{number:06d}.{kind}.json"])
