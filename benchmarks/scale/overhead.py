"""Measure the cost of orchestration: many short jobs that only sleep, with the real runners.

    python -m benchmarks.scale.overhead [--jobs 1000] [--slots 16] [--seconds 1] [--out FILE.json]

The result is the wall time divided by the ideal time, jobs x seconds / slots, for `local_runner`
and for the runner of the Prefect flows (with a new server, unless PREFECT_API_URL names one). The
clock starts when every worker process has finished a job. The exit code is 1 if a ratio is above
1.05.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Workers import this module and do not need these.
    from pipeline.execution.executor import PerDevice
    from pipeline.execution.runner import Runner

BAR = 1.05


@dataclass(frozen=True, slots=True)
class Nap:
    number: int
    seconds: float
    images: int = 1

    def __str__(self) -> str:
        return f"nap-{self.number:06d}"


def sleep(job: Nap, device: str, report: Callable[[float], None]) -> int:
    time.sleep(job.seconds)
    return job.number


def main() -> int:
    parser = argparse.ArgumentParser(description="What the orchestration costs.")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    ideal = options.jobs * options.seconds / options.slots
    jobs = [Nap(number, options.seconds) for number in range(options.jobs)]
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("PREFECT_HOME", home)
        results = {"local": _measure(_local, jobs, options.slots)}
        results["Prefect"] = _measure(_prefect, jobs, options.slots)
    ratios = {name: round(wall / ideal, 4) for name, wall in results.items()}
    lines = [f"{options.jobs} jobs of {options.seconds} s on {options.slots} slots: {ideal:.1f} s"]
    lines += [f"{name:<8} {wall:7.2f} s, {ratios[name]:.4f}" for name, wall in results.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    if options.out:
        facts = {**vars(options), "out": None, "ideal": ideal, "wall": results, "ratio": ratios}
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    return int(any(ratio > BAR for ratio in ratios.values()))


def _measure(run: Callable[[PerDevice, list[Nap]], float], jobs: list[Nap], slots: int) -> float:
    """Measure the seconds that ``jobs`` take in workers that have started."""
    from pipeline.execution.executor import PerDevice
    from pipeline.execution.runner import local_runner

    executor = PerDevice([{} for _ in range(slots)], "cpu")
    try:
        # One job for each slot, so long that no worker takes two of them.
        local_runner(executor, 0)(sleep, [Nap(n, 3.0) for n in range(slots)], "start")
        return run(executor, jobs)
    finally:
        executor.close()


def _local(executor: PerDevice, jobs: list[Nap]) -> float:
    from pipeline.execution.runner import local_runner

    return _timed(local_runner(executor, 0), jobs)


def _prefect(executor: PerDevice, jobs: list[Nap]) -> float:
    from prefect import flow

    from flows.running import prefect_runner

    @flow(name="overhead", persist_result=False)
    def naps() -> float:
        return _timed(prefect_runner(executor, 0), jobs)

    return naps()


def _timed(run: Runner, jobs: list[Nap]) -> float:
    started = time.perf_counter()
    results: list[Any] = run(sleep, jobs, "naps")
    assert results == [job.number for job in jobs]
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
