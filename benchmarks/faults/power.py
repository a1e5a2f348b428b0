"""Power loss between any two file operations: record the operations, replay each prefix.

A disk keeps fsynced data. It may keep any part of the rest, so each prefix is replayed into all
states that POSIX allows. Of the name changes in a directory since its last fsync, any first part
persists, independently for each directory. File content that was not fsynced is complete, cut in
half, or empty.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.faults.common import (
    Outcome,
    Params,
    at,
    dataset,
    difference,
    load,
    parameters,
    tree,
)
from pipeline.dataset.layout import is_lock, marker_of
from pipeline.execution.runner import open_runner
from pipeline.params import parse_params
from pipeline.stages.synthesize import synthesize
from pipeline.storage import digest_file
from pipeline.synthesis.check import load_checked_teacher
from pipeline.synthesis.shard_states import Found, survey

ONE_SHARD = {
    "synthesis.images": 6,
    "synthesis.iterations": 4,
    "adaptive.rounds": 0,
    "execution.workers": 1,
}
Files = dict[str, bytes | None]  # None stands for a directory.


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on a file. Paths are relative to the dataset."""

    kind: str  # mkdir, create, write, fsync, rename, unlink
    path: str
    target: str = ""
    offset: int = 0
    data: bytes = b""


def power(place: Path, count: int, rng: random.Random) -> Outcome:
    """Replay each prefix of a run that makes one shard, and of one that replaces a stale shard."""
    outcome = Outcome()
    new = parameters(place, ONE_SHARD)
    old = parameters(place, {**ONE_SHARD, "synthesis.seed": 1})
    _, digest = load(new)
    expected = _make(at(new, place / "calm"))
    _make(at(old, place / "stale"))
    for before in ("nothing", "stale"):
        here = at(new, place / f"over-{before}")
        root = dataset(here)
        root.mkdir(parents=True)
        if before == "stale":
            shutil.copytree(place / "stale" / "dataset", root, dirs_exist_ok=True)
        start = _read(root)
        operations = _record(here)
        outcome.expect(
            _states(start, operations)[0] == _read(root),
            f"over {before}: the recording is incomplete",
        )
        states = {
            tuple(sorted(state.items())): length
            for length in reversed(range(len(operations) + 1))
            for state in _states(start, operations[:length])
        }
        for state, length in states.items():
            last = operations[length - 1] if length else Operation("nothing", "")
            path = re.sub(r"\.[^.]*\.tmp$", ".*.tmp", last.path)
            where = f"over {before}, after operation {length} ({last.kind} {path})"
            _write(root, dict(state))
            for params in (new, old):
                (found,) = survey(parse_params(at(params, root.parent)), digest)
                outcome.expect(
                    found.state != "complete" or _is_whole(root, found),
                    f"{where}: an incomplete shard counts as complete",
                )
            wrong = difference(_make(here), expected)
            outcome.expect(not wrong, f"{where}: {wrong} differs")
        outcome.faults += len(states)
        outcome.facts[f"over {before}"] = {"operations": len(operations), "states": len(states)}
    return outcome


def _make(params: Params) -> dict[str, str]:
    """Complete the dataset in this process, and return its tree."""
    config = parse_params(params)
    with open_runner(config) as run:
        synthesize(config, load_checked_teacher(config), run)
    return tree(dataset(params))


def _is_whole(root: Path, found: Found) -> bool:
    return found.record is not None and all(
        digest_file(root / name) == facts["sha256"] for name, facts in found.record.files.items()
    )


# Recording.


PATCHED = ("open", "mkdir", "unlink", "replace", "fsync", "fdopen")  # functions of os


def _record(params: Params) -> list[Operation]:
    """Make the dataset, and return all file operations below its directory in order."""
    root = dataset(params)
    log: list[Operation] = []
    opened: dict[int, str] = {}
    real = {name: getattr(os, name) for name in PATCHED}

    def below(path: Any) -> str | None:
        inside = Path(path).is_relative_to(root)
        name = str(Path(path).relative_to(root)) if inside else None
        # No result relies on markers, and a lock ends with its process.
        return None if name and (marker_of(name) or is_lock(name)) else name

    def note(kind: str, path: Any, **more: Any) -> None:
        name = below(path)
        if name is not None:
            log.append(Operation(kind, name, **more))

    def open_(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        handle: int = real["open"](path, flags, *rest, **more)
        name = below(path)
        opened.pop(handle, None)
        if name is not None:
            opened[handle] = name
            if flags & os.O_CREAT:
                log.append(Operation("create", name))
        return handle

    def mkdir(path: Any, *rest: Any, **more: Any) -> None:
        real["mkdir"](path, *rest, **more)
        note("mkdir", path)

    def unlink(path: Any, **more: Any) -> None:
        real["unlink"](path, **more)
        note("unlink", path)

    def replace(source: Any, target: Any, **more: Any) -> None:
        real["replace"](source, target, **more)
        note("rename", source, target=below(target))

    def fsync(handle: int) -> None:
        real["fsync"](handle)
        if handle in opened:
            log.append(Operation("fsync", opened[handle]))

    class Recorded(io.FileIO):
        def write(self, data: Any) -> int:
            offset = self.tell()
            written = super().write(data) or 0
            name, content = opened[self.fileno()], bytes(memoryview(data).cast("B")[:written])
            log.append(Operation("write", name, offset=offset, data=content))
            return written

    def fdopen(handle: int, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if handle not in opened:  # Such as the lock's.
            return real["fdopen"](handle, mode, *rest, **more)
        return io.BufferedRandom(Recorded(handle, "r+"))

    with contextlib.ExitStack() as stack:
        for double in (open_, mkdir, unlink, replace, fsync, fdopen):
            name = double.__name__.rstrip("_")
            stack.enter_context(mock.patch.object(os, name, double))
        _make(params)
    return log


# Replaying.


@dataclass(slots=True)
class _File:
    content: bytes = b""
    synced: bytes = b""


@dataclass(slots=True)
class _Disk:
    """A disk: ``names`` are durable; ``waiting`` holds other name changes by directory."""

    names: dict[str, _File | None] = field(default_factory=dict)
    waiting: dict[str, list[tuple[str, str, _File | None]]] = field(default_factory=dict)


def _states(start: Files, operations: list[Operation]) -> list[Files]:
    """Return all states of the disk after ``operations``; first the one without any loss."""
    disk = _Disk(
        {name: None if data is None else _File(data, data) for name, data in start.items()}
    )
    current = dict(disk.names)
    for operation in operations:
        _apply(disk, current, operation)
    choices = [range(len(changes), -1, -1) for changes in disk.waiting.values()]
    return [
        _fallen(disk, dict(zip(disk.waiting, lengths, strict=True)), kept)
        for lengths in itertools.product(*choices)
        for kept in (1.0, 0.5, 0.0)
    ]


def _apply(disk: _Disk, current: dict[str, _File | None], done: Operation) -> None:
    waiting = disk.waiting.setdefault(str(Path(done.path).parent), [])
    file = current.get(done.path)
    match done.kind:
        case "mkdir":
            current[done.path] = None
            waiting.append(("add", done.path, None))
        case "create":
            current[done.path] = made = _File()
            waiting.append(("add", done.path, made))
        case "unlink":
            current.pop(done.path)
            waiting.append(("drop", done.path, None))
        case "rename":  # Both names are in one directory.
            current[done.target] = moved = current.pop(done.path)
            waiting.append((f"drop {done.path}", done.target, moved))
        case "write" if file is not None:
            gap = file.content.ljust(done.offset, b"\0")
            file.content = gap[: done.offset] + done.data + gap[done.offset + len(done.data) :]
        case "fsync" if file is not None:
            file.synced = file.content
        case "fsync":
            for change in disk.waiting.pop(done.path, []):
                _change(disk.names, change)


def _change(names: dict[str, _File | None], change: tuple[str, str, _File | None]) -> None:
    how, path, file = change
    if how == "drop":
        names.pop(path, None)
        return
    names.pop(how.removeprefix("drop "), None)
    names[path] = file


def _fallen(disk: _Disk, lengths: dict[str, int], kept: float) -> Files:
    """Return one state: a number of name changes of each directory, and a part of the content."""
    names = dict(disk.names)
    for directory, length in lengths.items():
        for change in disk.waiting[directory][:length]:
            _change(names, change)
    state: Files = {}
    for name, file in names.items():
        parents = [str(parent) for parent in Path(name).parents if str(parent) != "."]
        if any(parent not in names for parent in parents):
            continue  # Its directory was lost.
        if file is None:
            state[name] = None
        elif file.content == file.synced or kept == 1:
            state[name] = file.content
        else:
            state[name] = file.content[: int(kept * len(file.content))] if kept else file.synced
    return state


def _read(root: Path) -> Files:
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
    }


def _write(root: Path, files: Files) -> None:
    shutil.rmtree(root)
    root.mkdir()
    for name, data in sorted(files.items()):
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)
