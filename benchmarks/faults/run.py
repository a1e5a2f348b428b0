"""Fault injection: count the faults that runs survive, and the problems that remain.

    python -m benchmarks.faults.run [KIND ...] [--count N] [--out FILE.json]

Each kind injects one sort of fault into runs of a tiny teacher, many times, and compares the result
with the bytes of a run without faults:

kills    SIGKILL of the whole process tree at random moments, then the same command again
workers  SIGKILL of single worker processes; the run must finish by itself
flips    one changed byte in one file; verify must find it, and repair must restore the file
power    power loss after each prefix of a shard's file operations, in all possible disk states
disk     a disk that becomes full at random points, by a file-size limit and in a small tmpfs
flat     memory and open files of a run of 2,000 shards
server   a Prefect server that is killed and restarted in the middle of a deployment run

Everything happens in a temporary directory and in child processes. All random choices come from one
seed. The exit code is 1 if there was any problem.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.common import PROJECT, Outcome
from benchmarks.faults.disk import disk, flips
from benchmarks.faults.kills import kills, workers
from benchmarks.faults.long import flat
from benchmarks.faults.power import power
from benchmarks.faults.server import server
from pipeline.source_digest import source_digest

Kind = Callable[[Path, int, random.Random], Outcome]

KINDS: dict[str, tuple[Kind, int]] = {
    "kills": (kills, 100),
    "workers": (workers, 50),
    "flips": (flips, 300),
    "power": (power, 1),
    "disk": (disk, 20),
    "flat": (flat, 2000),
    "server": (server, 3),
}
PACKAGES = ("torch", "numpy", "pillow", "pyarrow", "webdataset", "prefect")


def main() -> int:
    parser = argparse.ArgumentParser(description="What a run survives, as counts.")
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, "all"], default="all")
    parser.add_argument("--count", type=int, help="number of faults; each kind has a default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    chosen = list(KINDS) if "all" in options.kinds else options.kinds
    torch.set_num_threads(1)
    results = {}
    for name in chosen:
        function, full = KINDS[name]
        outcome = strike(function, options.count or full, random.Random(f"{options.seed} {name}"))
        verdict = "BROKEN" if outcome.problems else "held"
        facts = {k: v for k, v in outcome.facts.items() if len(str(v)) < 100}
        say(f"{name:<8} {verdict:<6} {outcome.faults:>5} faults {outcome.seconds:>7.0f} s  {facts}")
        for problem in outcome.problems[:5]:
            say(f"    {problem}")
        results[name] = asdict(outcome)
        if options.out:
            report = {"seed": options.seed, "machine": machine(), "kinds": results}
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if any(result["problems"] for result in results.values()) else 0


def strike(function: Kind, count: int, rng: random.Random) -> Outcome:
    """Run one kind in a new directory. An unexpected error counts as a problem."""
    started, before = time.monotonic(), _code()
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        try:
            outcome = function(Path(place), count, rng)
        except Exception as error:
            outcome = Outcome(problems=[f"{type(error).__name__}: {error}".replace(place, "...")])
    outcome.expect(
        _code() == before,
        "pipeline/ was edited during the test, which makes shards stale: run the test again",
    )
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def _code() -> str:
    return source_digest(sorted((PROJECT / "pipeline").rglob("*.py")))


def machine() -> dict[str, Any]:
    """Describe the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
