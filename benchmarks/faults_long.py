"""A long run, which must stay flat, and a Prefect server that goes away in the middle of one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.faults_common import (
    LIMIT,
    PROJECT,
    Outcome,
    Params,
    at,
    dataset,
    difference,
    environment,
    finish,
    log_end,
    parameters,
    running,
    tree,
    undisturbed,
)
from pipeline.adaptive import synthesize
from pipeline.config import parse_config
from pipeline.executor import Work
from pipeline.running import open_runner

EVERY = 100  # shards between two looks at the memory
AWAY = 5.0  # seconds without a server


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
    config, shards = parse_config(params), 0

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

        synthesize(config, watched)
    return seen


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def server(place: Path, count: int, rng: random.Random) -> Outcome:
    """Kill a Prefect server while a flow runs against it, and start it again."""
    outcome = Outcome()
    params = parameters(place)
    expected, _ = undisturbed(params, place / "calm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    env = environment(
        PREFECT_HOME=str(place / "prefect"),
        PREFECT_API_URL=api,
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
    )
    runs = []
    for turn in range(count):
        here = at(params, place / f"fresh-{turn}")
        shards = rng.randrange(1, 20)
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(_server(place, port, env))
            _answer(api, first)
            process = stack.enter_context(running(here, "flows", env))
            deadline = time.monotonic() + LIMIT
            while process.poll() is None and time.monotonic() < deadline:
                if len(list((dataset(here) / "metadata").glob("0*.json"))) >= shards:
                    break
                time.sleep(0.02)
            outcome.expect(process.poll() is None, f"it ended too early: {log_end(here)}")
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
            outcome.faults += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(AWAY)
            second = stack.enter_context(_server(place, port, env))
            _answer(api, second)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LIMIT)
            code = process.poll()
            last = log_end(here)
            if code != 0:
                code_next = finish(here, "flows", env)
                outcome.expect(code_next == 0, f"the next run, {code_next}: {log_end(here)}")
            runs.append({"killed at shard": shards, "exit code": code, "said": last[:200]})
        wrong = difference(tree(dataset(here)), expected)
        outcome.expect(not wrong, f"{wrong} differs")
    outcome.facts = {
        "completed by that run": sum(run["exit code"] == 0 for run in runs),
        "completed by the next": sum(run["exit code"] != 0 for run in runs),
        "runs": runs,
    }
    return outcome


@contextlib.contextmanager
def _server(place: Path, port: int, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server on the loopback, in a process group of its own."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "server", "start", "--no-ui"]
    with (place / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=PROJECT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answer(api: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{api}/health", timeout=5).close()
            return
        time.sleep(0.1)
    raise RuntimeError("the Prefect server did not start")
