"""Weak scaling on one machine: images/s of two workers over twice those of one.

    python -m benchmarks.scale.workers [--params examples/cifar10.yaml] [--iterations 20]
        [--shards 2]
        [--repeats 5] [--workers 2] [--out FILE.json]

A worker is a process with one thread, as `execution.workers` gives it on a CPU. One worker makes
`--shards` shards, two make twice as many, in alternation, after a first shard each that loads and
compiles. The clock runs from the first shard handed out to the last one published. The bar is a
median of 0.93; 1.85 is that of the plain ratio (0.925 in these terms). Exit code 1 below it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the workers, which import this module, load when they are ready to
    from pipeline.execution.executor import PerDevice, Work

BAR = 0.93


class Team:
    """Some workers that stay, and the images/s of what they make."""

    def __init__(self, options: argparse.Namespace, workers: int) -> None:
        from pipeline.execution.executor import PerDevice

        self._options, self._workers = options, workers
        self._executor: PerDevice = PerDevice([{} for _ in range(workers)], "cpu")

    def rate(self, shards: int) -> float:
        """Images a second over ``shards`` shards a worker, in a dataset that is thrown away."""
        from pipeline.execution.runner import local_runner
        from pipeline.params import load_params
        from pipeline.stages.synthesize import synthesize
        from pipeline.synthesis.check import load_checked_teacher

        params = Path(self._options.params)
        size = load_params(params).synthesis.shard_size
        run = local_runner(self._executor, retries=0)
        seconds = 0.0

        def timed(work: Work, jobs: Sequence[Any], description: str) -> list[Any]:
            nonlocal seconds
            started = time.perf_counter()
            made = run(work, jobs, description)
            seconds = time.perf_counter() - started
            return made

        with tempfile.TemporaryDirectory() as place:
            changes = {
                "synthesis.images": size * shards * self._workers,
                "synthesis.iterations": self._options.iterations,
                "synthesis.threads": 1,
                "execution.device": "cpu",
                "paths.dataset": f"{place}/dataset",
                "paths.reports": f"{place}/reports",
            }
            config = load_params(params, changes)
            synthesize(config, load_checked_teacher(config), timed)
        return size * shards * self._workers / seconds

    def close(self) -> None:
        self._executor.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Images/s of two workers over twice those of one.")
    parser.add_argument("--params", default="examples/cifar10.yaml")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--shards", type=int, default=2, help="a worker makes in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    teams = {workers: Team(options, workers) for workers in (1, options.workers)}
    rates: dict[int, list[float]] = {workers: [] for workers in teams}
    try:
        for team in teams.values():
            team.rate(1)
        for _ in range(options.repeats):
            for workers, team in teams.items():
                rates[workers].append(team.rate(options.shards))
    finally:
        for team in teams.values():
            team.close()
    pairs = zip(rates[options.workers], rates[1], strict=True)
    ratios = [many / one / options.workers for many, one in pairs]
    efficiency = statistics.median(ratios)
    for workers, values in rates.items():
        sys.stdout.write(f"{workers} workers: {statistics.median(values):.2f} images/s\n")
    sys.stdout.write(
        f"efficiency {efficiency:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
        f"load {os.getloadavg()[0]:.2f}\n"
    )
    if options.out:
        facts = {
            "options": {**vars(options), "out": None},
            "images_per_second": rates,
            "efficiency": efficiency,
            "ratios": ratios,
            "load": os.getloadavg(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    return int(efficiency < BAR)


if __name__ == "__main__":
    sys.exit(main())
