"""Make one dataset in every possible way, and compare the bytes; exit code 1 if any differ.

    python -m benchmarks.faults.same_bytes [--out FILE.json]

A tiny teacher makes 16 shards of round 0 and 8 shards of an adaptive round: in one process; in two
processes; by two workers of a Dask cluster; as three `--shards` ranges for each round, the last
range first, and `finalize`; and by a deployment on a Prefect server. The script needs the extras
`dask` and `flows`, and about two minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from distributed import LocalCluster

from benchmarks.faults.common import (
    PROJECT,
    Params,
    at,
    changed,
    dataset,
    difference,
    environment,
    parameters,
    tree,
)
from benchmarks.faults.prefect_site import background, make_site, prefect, serving

RANGES = (
    "11:16",
    "0:5",
    "5:11",
    "22:24",
    "19:22",
    "16:19",
)  # All ranges of round 0 come before those of round 1.
ONE = {"execution.workers": 1}


def main() -> int:
    parser = argparse.ArgumentParser(description="The same bytes in every way.")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    expected: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="same-bytes-") as name:
        place = Path(name)
        params = parameters(place)
        for way, make in WAYS.items():
            here = at(params, place / way.replace(" ", "-"))
            dataset(here).parent.mkdir()
            started = time.monotonic()
            make(here)
            seconds = round(time.monotonic() - started, 1)
            found = tree(dataset(here))
            expected = expected or found
            differs = difference(found, expected)
            rows.append({"way": way, "files": len(found), "seconds": seconds, "differs": differs})
            line = f"{way:<20} {len(found):>4} files {seconds:>6} s   {differs or 'same'}\n"
            sys.stdout.write(line)
            sys.stdout.flush()
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row["differs"] for row in rows))


def _in_process(params: Params) -> None:
    _pipeline("synthesize", changed(params, ONE))


def _processes(params: Params) -> None:
    _pipeline("synthesize", changed(params, {"execution.workers": 2}))


def _dask(params: Params) -> None:
    options = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster:
        address = cluster.scheduler_address
        _pipeline("synthesize", changed(params, {"execution.dask_address": address}))


def _ranges(params: Params) -> None:
    for shards in RANGES:
        _pipeline("synthesize", changed(params, ONE), "--shards", shards)
    _pipeline("finalize", params)


def _deployment(params: Params) -> None:
    site = make_site(dataset(params).parent / "prefect")
    with serving(site):
        prefect(site, "work-pool", "create", "local", "--type", "process")
        with background(site, "worker", "start", "--pool", "local"):
            prefect(site, "deploy", "--all")
            run = ("deployment", "run", "synthesize/local", "--watch", "--watch-interval", "1")
            prefect(site, *run, "--param", f"params={_write(params)}")


WAYS: dict[str, Callable[[Params], None]] = {
    "in process": _in_process,
    "two processes": _processes,
    "two Dask workers": _dask,
    "ranges, finalize": _ranges,
    "Prefect deployment": _deployment,
}


def _pipeline(command: str, params: Params, *options: str) -> None:
    written = str(_write(params))
    _command(
        environment(), sys.executable, "-m", "pipeline", command, "--params", written, *options
    )


def _write(params: Params) -> Path:
    path = dataset(params).parent / "params.yaml"
    path.write_text(json.dumps(params))
    return path


def _command(env: dict[str, str], *arguments: str) -> None:
    done = subprocess.run(
        arguments, cwd=PROJECT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-4000:]
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{said}")


if __name__ == "__main__":
    sys.exit(main())
