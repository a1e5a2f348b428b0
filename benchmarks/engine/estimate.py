"""Does a run take the time and the memory that ``plan --probe`` says?

    python -m benchmarks.engine.estimate [--params params.yaml] [--set section.key=value]
        [--rounds 3]

In each round a probe and a run on one device, each a process of its own, one after the other,
without adaptive rounds. The seconds of the shards are compared; what comes before the first
(loading, compiling) is apart: a run's is its first shard's time less that of as many images of the
others, so that it needs two shards. Memory is the peak of the GPU or, on a CPU, of the process.

With ``--busy`` the seconds are the process's own on the CPU, which other work disturbs less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.exit_codes import report_errors
from pipeline.params import load_params, parse_overrides
from pipeline.storage import write_json

Figures = dict[str, float]


def said(config: Config, device: str) -> Figures:
    """Seconds of all shards, seconds before them, and bytes, as a probe has them."""
    from pipeline.dataset.plan import plan_of
    from pipeline.estimation.device_timing import ProbeJob, probe
    from pipeline.synthesis.check import load_checked_teacher

    load_checked_teacher(config)
    found = probe(ProbeJob(config, 0), device, lambda images: None)
    speed = found.speeds[0]
    seconds = speed.image * len(plan_of(config).labels)
    return {"seconds": seconds, "start": speed.start, "memory": found.memory}


def measured(config: Config, device: str) -> Figures:
    """The same of a run."""
    from pipeline.device.memory import peak_memory
    from pipeline.execution.executor import InProcess
    from pipeline.execution.runner import local_runner
    from pipeline.stages.synthesize import synthesize
    from pipeline.synthesis.check import load_checked_teacher

    run = local_runner(InProcess(device), retries=0)
    first, *others = synthesize(config, load_checked_teacher(config), run)
    if not others:
        raise UserError("one shard does not tell its start from the rest: ask for two")
    image = sum(made.seconds for made in others) / sum(made.images for made in others)
    images = first.images + sum(made.images for made in others)
    start = first.seconds - image * first.images
    return {"seconds": image * images, "start": start, "memory": peak_memory(device)}


def compare(config: Config, device: str, rounds: int, busy: bool) -> list[dict[str, Figures]]:
    """Of each round both figures. Each is of a new process, whose memory is its own."""
    results = []
    for _ in range(rounds):
        result = {}
        for of in (said, measured):
            with tempfile.TemporaryDirectory() as folder, _process(busy) as process:
                paths = {name: str(Path(folder) / name) for name in ("dataset", "reports")}
                elsewhere = config.paths.model_copy(update=paths)
                changed = config.model_copy(update={"paths": elsewhere})
                result[of.__name__] = process.submit(of, changed, device).result()
        results.append(result)
        sys.stdout.write(f"{_words(result)}, load {os.getloadavg()[0]:.1f}\n")
        sys.stdout.flush()
    return results


def _process(busy: bool) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), _count_own_seconds if busy else None)


def _count_own_seconds() -> None:
    time.perf_counter = time.process_time


def _words(result: dict[str, Figures]) -> str:
    of, run = result["said"], result["measured"]
    return (
        f"said {of['seconds']:.1f} s and {of['memory'] / 1e6:.0f} MB, "
        f"measured {run['seconds']:.1f} s and {run['memory'] / 1e6:.0f} MB; "
        f"start {of['start']:.1f} and {run['start']:.1f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--out", type=Path)
    with report_errors() as outcome:
        options = parser.parse_args()
        config = load_params(options.params, parse_overrides(options.set))
        alone = config.adaptive.model_copy(update={"rounds": 0})
        config = config.model_copy(update={"adaptive": alone})
        results: list[dict[str, Any]] = list(
            compare(config, options.device, options.rounds, options.busy)
        )
        for name in ("seconds", "memory"):
            ratios = [result["measured"][name] / result["said"][name] for result in results]
            sys.stdout.write(
                f"{name}: {statistics.median(ratios):.2f} of what was said "
                f"({min(ratios):.2f} to {max(ratios):.2f})\n"
            )
        if options.out:
            write_json(options.out, results)
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
