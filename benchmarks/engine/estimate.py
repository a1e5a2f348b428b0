"""Compare the time and memory that ``plan --probe`` estimates with those of a run.

    python -m benchmarks.engine.estimate [--params params.yaml] [--set section.key=value]
        [--rounds 3]

Each repetition makes one probe and one run on one device, one after the other, each in a new
process and without adaptive rounds. The benchmark compares the seconds of the shards, and
separately the seconds of the start (loading, compiling). The start of a run is the time of its
first shard, less the time that other shards take for the same number of images; the run therefore
needs two shards. Memory is the peak of the GPU or, on a CPU, of the process.

With ``--busy`` the seconds are CPU seconds of the process, which other work disturbs less.
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
    """Estimate the seconds of all shards and of the start, and the peak memory in bytes."""
    from pipeline.dataset.plan import plan_of
    from pipeline.estimation.device_timing import ProbeJob, probe
    from pipeline.synthesis.check import load_checked_teacher

    load_checked_teacher(config)
    found = probe(ProbeJob(config, 0), device, lambda images: None)
    speed = found.speeds[0]
    seconds = speed.image * len(plan_of(config).labels)
    return {"seconds": seconds, "start": speed.start, "memory": found.memory}


def measured(config: Config, device: str) -> Figures:
    """Measure the same three numbers of a run."""
    from pipeline.device.memory import peak_memory
    from pipeline.execution.executor import InProcess
    from pipeline.execution.runner import local_runner
    from pipeline.stages.synthesize import synthesize
    from pipeline.synthesis.check import load_checked_teacher

    run = local_runner(InProcess(device), retries=0)
    first, *others = synthesize(config, load_checked_teacher(config), run)
    if not others:
        raise UserError(
            "one shard is too few to measure the start: set synthesis.images to two shards"
        )
    image = sum(made.seconds for made in others) / sum(made.images for made in others)
    images = first.images + sum(made.images for made in others)
    start = first.seconds - image * first.images
    return {"seconds": image * images, "start": start, "memory": peak_memory(device)}


def compare(config: Config, device: str, rounds: int, busy: bool) -> list[dict[str, Figures]]:
    """Repeat estimate and run, each in a new process, because peak memory belongs to a process."""
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
                f"{name}: {statistics.median(ratios):.2f} of the estimate "
                f"({min(ratios):.2f} to {max(ratios):.2f})\n"
            )
        if options.out:
            write_json(options.out, results)
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
