"""Markers: small hidden files that tell other runs about shards that are not complete.

A ``running`` marker names the process that makes the shard. The process writes it again every
minute. A ``failed`` marker holds the error that ended the last attempt. Only the command ``status``
reads markers; whether a shard is complete depends on its record alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.dataset.layout import Layout, MarkerKind, marker_name, marker_of
from pipeline.execution.executor import Stopped
from pipeline.redaction import redact_text
from pipeline.storage import Location, Stat, json_bytes, read_many, remove_all, write_bytes

REFRESH = 60.0  # seconds between two updates of a running marker
DEAD = 600.0  # seconds without an update after which the run counts as dead


@contextlib.contextmanager
def marked(root: Location, number: int) -> Iterator[Callable[[], None]]:
    """Mark shard ``number`` as running during the block, and as failed if the block fails.

    A block that was stopped, by the user or by another shard's failure, has not failed.

    Yields:
        A function to call often. It updates the marker once a minute.
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
        _write(root, number, "failed", {**facts, "error": redact_text(text)})
        raise
    finally:
        _remove(root, number, "running")


def read_markers(root: Location, files: Mapping[str, Stat]) -> dict[int, tuple[MarkerKind, str]]:
    """The marked shards of a dataset.

    A killed run leaves its running marker behind. The marker is ignored once its process no longer
    runs on this host, or ten minutes after its last update.

    Args:
        root: the folder of the dataset.
        files: the listing of ``root``.

    Returns:
        The kind of each marked shard, and its host and process or the error.
    """
    markers = {name: marker for name in files if (marker := marker_of(name))}
    found: dict[int, tuple[MarkerKind, str]] = {}
    texts = read_many([root / name for name in markers])
    for (name, (number, kind)), text in zip(markers.items(), texts, strict=True):
        facts = _facts(text)
        if kind == "running":
            if time.time() - files[name].modified < DEAD and not _is_gone(facts):
                found[number] = ("running", f"{facts.get('host')}, pid {facts.get('pid')}")
        elif number not in found:
            found[number] = ("failed", str(facts.get("error")))
    return found


def _facts(text: bytes | None) -> dict[str, Any]:
    try:
        return dict(json.loads(text or b""))
    except (ValueError, TypeError):  # another process is writing the marker now
        return {}


def _is_gone(facts: dict[str, Any]) -> bool:
    """Whether the process that wrote a marker ran on this host and has ended."""
    if facts.get("host") != socket.gethostname() or not isinstance(facts.get("pid"), int):
        return False
    try:
        os.kill(facts["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:  # the process runs, as another user
        return False
    return False


def _write(root: Location, number: int, kind: MarkerKind, facts: dict[str, Any]) -> None:
    path = Layout(root).marker(number, kind)
    with contextlib.suppress(OSError):  # a marker that cannot be written must not fail its shard
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(json_bytes(facts))  # no fsync: a power loss ends the run as well
        else:
            write_bytes(path, json_bytes(facts))


def _remove(root: Location, number: int, kind: MarkerKind) -> None:
    with contextlib.suppress(OSError):
        remove_all(root, [marker_name(number, kind)])
