"""SIGKILL of whole process trees, and of single workers."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from benchmarks.faults.common import (
    LIMIT,
    Outcome,
    Params,
    Stamps,
    at,
    dataset,
    difference,
    finish,
    load,
    log_end,
    parameters,
    running,
    shard_stamps,
    tree,
    undisturbed,
)

FILES = 14  # A tree is killed after up to this many new files and ``DELAY`` s.
DELAY = 0.3
PAUSE = (0.5, 6.0)  # Seconds between two kills. A new worker starts in 2 to 3 s.


def kills(place: Path, count: int, rng: random.Random) -> Outcome:
    """Kill the whole tree at random moments and start it again until the dataset is complete."""
    outcome, moments = Outcome(), Counter[str]()
    params = parameters(place)
    _, digest = load(params)
    expected, seconds = undisturbed(params, place / "calm")
    fresh = 0
    while outcome.faults < count:
        fresh += 1
        here = at(params, place / f"fresh-{fresh}")
        seen: dict[int, Stamps] = {}
        struck = True
        while struck:
            if outcome.faults < count:
                struck = _run_and_kill(here, rng, seconds, moments)
                outcome.faults += struck
            else:
                struck, code = False, finish(here)
                outcome.expect(code == 0, f"exit code {code}: {log_end(here)}")
            now = shard_stamps(here, digest)
            again = sorted(n for n, stamps in seen.items() if now.get(n) != stamps)
            outcome.expect(not again, f"complete shards were made again: {again}")
            seen = now
        wrong = difference(tree(dataset(here)), expected)
        outcome.expect(not wrong, f"output {fresh} differs: {wrong}")
    outcome.facts = {
        "outputs completed": fresh,
        "shards a run": len(now),
        "workers": 2,
        "struck": dict(moments.most_common()),
    }
    return outcome


def _run_and_kill(
    params: Params, rng: random.Random, seconds: float, moments: Counter[str]
) -> bool:
    """Start a run and kill it at a random moment; return False if it ended before."""
    files, delay = rng.randrange(FILES + 1), rng.uniform(0, DELAY)
    if files == 0:
        delay = rng.uniform(0, seconds / 4)  # The run is still starting.
    old = _inodes(dataset(params))
    new: set[tuple[str, int]] = set()
    with running(params) as process:
        deadline = time.monotonic() + LIMIT
        while len(new) < files and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
            new |= _inodes(dataset(params)) - old
        if time.monotonic() >= deadline:
            raise RuntimeError(f"a run hangs: {log_end(params)}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
    if process.returncode != -signal.SIGKILL:
        if process.returncode != 0:
            raise RuntimeError(f"exit code {process.returncode}: {log_end(params)}")
        return False
    moments[_moment(dataset(params), bool(new))] += 1
    return True


def _inodes(root: Path) -> set[tuple[str, int]]:
    """Return the inodes of all files, temporary ones included. A replaced file gets a new inode."""
    found = set()
    for folder in ("", "train", "metadata", "students"):
        with contextlib.suppress(FileNotFoundError), os.scandir(root / folder) as entries:
            found |= {(entry.name, entry.inode()) for entry in entries if not entry.is_dir()}
    return found


def _moment(root: Path, worked: bool) -> str:
    """Describe what a run was doing when it was killed."""
    if not worked:
        return "starting"
    records = len(list((root / "metadata").glob("0*.json")))
    if records < 16:
        return "first round"
    if not (root / "students" / "000001.json").exists():
        return "student"
    return "second round" if records < 24 else "dataset files"


def workers(place: Path, count: int, rng: random.Random) -> Outcome:
    """Kill one worker after another but never the run itself, which must finish."""
    outcome = Outcome(facts={"retries": count, "workers": 2})
    params = parameters(place, {"execution.retries": count})
    expected, _ = undisturbed(params, place / "calm")
    runs = 0
    while outcome.faults < count:
        runs += 1
        here = at(params, place / f"fresh-{runs}")
        with running(here) as process:
            deadline = time.monotonic() + LIMIT
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(*PAUSE))
                outcome.faults += outcome.faults < count and _kill_a_worker(process.pid, rng)
            hangs = process.poll() is None
        outcome.expect(not hangs, f"run {runs} hangs: {log_end(here)}")
        code = process.returncode
        outcome.expect(hangs or code == 0, f"run {runs}, exit code {code}: {log_end(here)}")
        wrong = difference(tree(dataset(here)), expected)
        outcome.expect(not wrong, f"run {runs} differs: {wrong}")
    outcome.facts["runs"] = runs
    return outcome


def _kill_a_worker(parent: int, rng: random.Random) -> bool:
    """Kill a worker if there is one, and return whether there was one."""
    alive = sorted(worker_pids(parent))
    if not alive:
        return False
    try:
        os.kill(rng.choice(alive), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def worker_pids(parent: int) -> list[int]:
    """Return the worker processes of a run, from ``/proc``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes()
            if int(ppid) == parent and state != "Z" and b"spawn_main" in command:
                found.append(int(folder.name))
    return found
