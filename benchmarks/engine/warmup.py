"""Measure the overhead of a shard over its optimisation steps, and the warm-up of a process.

    python -m benchmarks.engine.warmup [--params examples/cifar10.yaml] [--threads 1]
        [--out FILE.json]

Two processes run one after the other and share a compile cache that is empty at first. Each makes
two shards. The overhead is the wall time of a process's second shard (labels, start images, steps,
judgement, PNG, hashes, tar, Parquet, record) divided by the time of its optimisation steps. The
warm-up is the wall time of the process, less twice the time of its second shard.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.exit_codes import report_errors
from pipeline.params import load_params
from pipeline.storage import write_json


def make(params: Path, threads: int, dataset: str) -> dict[str, float]:
    """Make two shards in this process; return the seconds of the second and of its steps."""
    from pipeline.inversion import invert as inversion
    from pipeline.synthesis.check import load_checked_teacher
    from pipeline.synthesis.make_shard import make_shard
    from pipeline.synthesis.shard_states import missing_jobs

    optimise, inside = inversion._optimise, [0.0]

    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        images = optimise(*arguments, **named)
        inside[0] += time.perf_counter() - started
        return images

    inversion._optimise = timed
    config = parameters(params, threads, dataset)
    loaded = load_checked_teacher(config)
    jobs = missing_jobs(config, loaded.digest, 0, None, range(2))
    for job in jobs:
        inside[0] = 0.0
        made = make_shard(job, "cpu", lambda images: None)
    return {"shard": made.seconds, "steps": inside[0]}


def parameters(params: Path, threads: int, dataset: str) -> Config:
    config = load_params(params)
    batch = config.synthesis.batch_size
    synthesis = {"images": 2 * batch, "shard_size": batch, "threads": threads}
    return config.model_copy(
        update={
            "synthesis": config.synthesis.model_copy(update=synthesis),
            "paths": config.paths.model_copy(update={"dataset": dataset}),
        }
    )


def process(options: argparse.Namespace, cache: Path, dataset: Path) -> dict[str, float]:
    """Make two shards in a new process; return the same seconds and the ``warmup``."""
    command = [sys.executable, "-m", "benchmarks.engine.warmup", "--child", str(dataset)]
    command += ["--params", str(options.params), "--threads", str(options.threads)]
    started = time.perf_counter()
    done = subprocess.run(
        command,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        check=True,
    )
    seconds = time.perf_counter() - started
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {
        **facts,
        "overhead": facts["shard"] / facts["steps"],
        "warmup": seconds - 2 * facts["shard"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("examples/cifar10.yaml"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    with report_errors() as outcome:
        options = parser.parse_args()
        if options.child:
            made = make(options.params, options.threads, options.child)
            sys.stdout.write(json.dumps(made) + "\n")
            return 0
        sys.stdout.write(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start\n")
        results = {}
        with tempfile.TemporaryDirectory() as folder:
            for name in ("empty cache", "warm cache"):
                dataset = Path(folder) / name.replace(" ", "-")
                results[name] = result = process(options, Path(folder) / "compiled", dataset)
                sys.stdout.write(
                    f"{name}: warm-up {result['warmup']:.1f} s; a shard {result['shard']:.1f} s, "
                    f"{result['overhead']:.4f} of its steps\n"
                )
                sys.stdout.flush()
        if options.out:
            write_json(options.out, results)
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
