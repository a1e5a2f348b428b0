"""A long run, which must stay flat."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.faults.common import Outcome, Params, parameters
from pipeline.execution.executor import Work
from pipeline.execution.runner import open_runner
from pipeline.params import parse_params
from pipeline.stages.synthesize import synthesize
from pipeline.synthesis.check import load_checked_teacher

EVERY = 100  # shards between two looks at the memory


def flat(place: Path, count: int, rng: random.Random) -> Outcome:
    """Memory and open files of a run of ``count`` tiny shards: after 100 and at its end."""
    params = parameters(
        place,
        {
            "synthesis.images": 2 * count,
            "synthesis.shard_size": 2,
            "synthesis.batch_size": 2,
            "synthesis.iterations": 1,
            "adaptive.rounds": 0,
            "execution.workers": 1,
        },
    )
    # In a process of its own: this one has grown by what it did before.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        seen = pool.submit(_watch, params).result()
    (first, files), (last, last_files) = seen[0], seen[-1]
    grown = last / first - 1
    outcome = Outcome(len(seen) * EVERY)
    outcome.expect(abs(grown) <= 0.1, f"memory changed by {grown:.1%}")
    outcome.expect(last_files == files, f"{files} open files became {last_files}")
    outcome.facts = {
        "resident MiB after 100 shards": round(first / 1024, 1),
        "resident MiB at the end": round(last / 1024, 1),
        "growth": f"{grown:+.1%}",
        "open files": [files, last_files],
        "resident MiB every 100 shards": [round(memory / 1024) for memory, _ in seen],
    }
    return outcome


def _watch(params: Params) -> list[tuple[int, int]]:
    """Resident KiB and open files after every 100 shards."""
    seen: list[tuple[int, int]] = []
    config, shards = parse_params(params), 0

    with open_runner(config) as run:

        def watched(work: Work, jobs: Sequence[Any], description: str) -> list[Any]:
            def one(job: Any, device: str, report: Any) -> Any:
                nonlocal shards
                made = work(job, device, report)
                shards += 1
                if shards % EVERY == 0:
                    seen.append((_resident(), len(os.listdir("/proc/self/fd"))))
                return made

            return run(one, jobs, description)

        synthesize(config, load_checked_teacher(config), watched)
    return seen


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
