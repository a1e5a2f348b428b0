"""Disks that flip a byte, and disks that fill up."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.common import (
    LIMIT,
    PROJECT,
    Outcome,
    Params,
    at,
    changed,
    complete,
    dataset,
    difference,
    environment,
    finish,
    load,
    log_end,
    parameters,
    tree,
    undisturbed,
)
from pipeline.execution.runner import open_runner
from pipeline.params import parse_params
from pipeline.stages import verify
from pipeline.stages.synthesize import synthesize
from pipeline.synthesis.check import load_checked_teacher

SMALL = {
    "synthesis.images": 24,
    "adaptive.images": 12,
    "synthesis.iterations": 4,
    "execution.workers": 1,
}
PAGE = 4096
BAR = re.compile(r"\d+%\|")
CAUSES = ("No space left on device", "File too large")


def flips(place: Path, count: int, rng: random.Random) -> Outcome:
    """Change one byte of one file at a time; verify must find it, repair must undo it."""
    outcome = Outcome()
    params = parameters(place, SMALL)
    config = parse_params(params)
    teacher = load_checked_teacher(config)
    with open_runner(config) as run:
        synthesize(config, teacher, run)
        expected = tree(dataset(params))
        found = repaired = 0
        for turn in range(count):
            if turn % len(expected) == 0:
                names = rng.sample(sorted(expected), len(expected))
            path = dataset(params) / names[turn % len(names)]
            name, original = path.relative_to(dataset(params)), path.read_bytes()
            position, bits = rng.randrange(len(original)), rng.randrange(1, 256)
            flipped = bytearray(original)
            flipped[position] ^= bits
            path.write_bytes(flipped)
            outcome.faults += 1
            where = f"byte {position} of {name}"
            found += bool(verify.verify(config, teacher, 0.0, lambda images: None))
            outcome.expect(found == outcome.faults, f"not found: {where}")
            verify.repair(config, teacher, run)
            wrong = difference(tree(dataset(params)), expected)
            repaired += not wrong
            outcome.expect(not wrong, f"after {where} was repaired {wrong} differs")
            if wrong:
                path.write_bytes(original)
    outcome.facts = {"files": len(expected), "found": found, "repaired": repaired}
    return outcome


def disk(place: Path, count: int, rng: random.Random) -> Outcome:
    """Let the disk fill at random points, by a file-size limit and in a small tmpfs."""
    outcome = Outcome()
    params = parameters(place, {**SMALL, "execution.workers": 2})
    _, digest = load(params)
    expected, _ = undisturbed(params, place / "calm")
    sizes = [path.stat().st_size for path in (place / "calm").rglob("*") if path.is_file()]
    pages = sum(-(-size // PAGE) for size in sizes)
    said: set[str] = set()
    kinds = (
        {"file-size limit": _limited, "tmpfs": _tmpfs}
        if _may_mount(place)
        else {"file-size limit": _limited}
    )
    for kind, full_disk in kinds.items():
        bound = max(sizes) - 1 if kind == "file-size limit" else pages - 2
        for turn in range(count):
            room = rng.randrange(1, bound)
            here = at(params, place / kind.replace(" ", "-") / str(turn))
            dataset(here).parent.mkdir(parents=True)
            with full_disk(dataset(here).parent, room) as (limit, make_space):
                where = f"{kind} {room}"
                code, lines = _run(here, limit)
                outcome.faults += code != 0
                outcome.expect(code != 0, f"{where}: it ended well on a full disk")
                clear = len(lines) == 1 and any(cause in lines[0] for cause in CAUSES)
                outcome.expect(clear, f"{where}, exit code {code}: {lines}")
                said |= {re.sub(r"\d+ of \d+", "N of M", line) for line in lines}
                broken = _broken(here, digest)
                outcome.expect(not broken, f"{where}: {broken[:1]}")
                make_space()
                code = finish(changed(here, {"execution.workers": 1}))
                outcome.expect(code == 0, f"{where}, with space, {code}: {log_end(here)}")
                wrong = difference(tree(dataset(here)), expected)
                outcome.expect(not wrong, f"{where}: {wrong} differs")
    outcome.facts = {"kinds": list(kinds), "points of each": count, "errors": sorted(said)}
    return outcome


def _run(params: Params, limit: Callable[[], None]) -> tuple[int, list[str]]:
    """The exit code of a run, and its lines on stderr without those of progress bars."""
    file = dataset(params).parent.parent / f"{dataset(params).parent.name}.json"
    file.write_text(json.dumps(params))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "synthesize", "--params", str(file)],
        cwd=PROJECT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        preexec_fn=limit,
        timeout=LIMIT,
        start_new_session=True,
    )
    lines = [line.rpartition("\r")[2] for line in done.stderr.decode().split("\n")]
    return done.returncode, [line for line in lines if line.strip() and not BAR.search(line)]


def _broken(params: Params, digest: str) -> list[str]:
    """What verify says of the shards that count as complete."""
    config = parse_params(params)
    names = tuple(f"shard {number:06d}:" for number in complete(params, digest))
    found = verify.verify(config, load_checked_teacher(config), 0.0, lambda images: None)
    return [problem for problem in found if problem.startswith(names)] if names else []


Space = tuple[Callable[[], None], Callable[[], object]]  # what limits a child; what makes space


@contextlib.contextmanager
def _limited(root: Path, room: int) -> Iterator[Space]:
    """No file larger than ``room`` bytes; Python ignores SIGXFSZ and gets an error instead."""
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)), lambda: None


@contextlib.contextmanager
def _tmpfs(root: Path, room: int) -> Iterator[Space]:
    """A file system of ``room`` pages."""
    options = f"size={room * PAGE // 1024}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "faults", str(root)], check=True)
    grow = ["mount", "-o", "remount,size=64m", str(root)]
    try:
        yield lambda: None, lambda: subprocess.run(grow, check=True)
    finally:
        subprocess.run(["umount", str(root)], check=True)


def _may_mount(place: Path) -> bool:
    """Whether this user may mount a tmpfs here."""
    if os.geteuid() != 0:
        return False
    (place / "probe").mkdir(parents=True, exist_ok=True)
    try:
        with _tmpfs(place / "probe", 1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
