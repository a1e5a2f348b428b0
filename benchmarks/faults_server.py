"""A Prefect server that is killed in the middle of a deployment run, and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    parameters,
    tree,
    undisturbed,
)

PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
AWAY = 5.0  # seconds without a server


@dataclass(frozen=True, slots=True)
class Site:
    """Where a server listens, and the environment in which commands find it."""

    home: Path
    port: int
    env: dict[str, str]

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.api}/{path}", timeout=10) as answer:
            return json.load(answer)


def server(place: Path, count: int, rng: random.Random) -> Outcome:
    """Kill the server while a worker executes a deployment run, and start it again."""
    params = parameters(place)
    expected, _ = undisturbed(params, place / "calm")
    outcome, runs = Outcome(), []
    for turn in range(count):
        here = at(params, place / f"fresh-{turn}")
        site = _site(place / f"prefect-{turn}")
        runs.append(_strike(here, site, rng.randrange(1, 20), expected))
        outcome.faults += 1
        wrong = difference(tree(dataset(here)), expected)
        outcome.expect(not wrong, f"turn {turn}: {wrong} differs")
    finished = sum(run["completed by that run"] for run in runs)
    outcome.facts = {
        "completed by that run": finished,
        "completed by the next": count - finished,
        "runs": runs,
    }
    return outcome


def _strike(here: Params, site: Site, shards: int, expected: dict[str, str]) -> dict[str, Any]:
    """Kill the server when ``shards`` are complete; run again if that run does not finish."""
    root = dataset(here)
    root.parent.mkdir(parents=True)
    file = root.parent / "params.yaml"
    file.write_text(json.dumps(here))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(_server(site))
        _prefect(site, "work-pool", "create", "local", "--type", "process")
        _prefect(site, "deploy", "--all")
        stack.enter_context(_background(site, "worker", "start", "--pool", "local"))
        run = _deploy(site, file)
        _wait(lambda: len(list((root / "metadata").glob("0*.json"))) >= shards, LIMIT)
        if not _alive(run):
            raise RuntimeError("the run ended before the server was killed")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        time.sleep(AWAY)
        stack.enter_context(_server(site))
        _wait(lambda: not _alive(run), LIMIT)
        completed = tree(root) == expected
        if not completed:
            following = _deploy(site, file)
            _wait(lambda: _state(site, following) == "COMPLETED", LIMIT)
        return {
            "killed at shard": shards,
            "completed by that run": completed,
            "its state": _state(site, run),
        }


def _site(home: Path) -> Site:
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = environment(
        PREFECT_HOME=str(home),
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_WORKER_QUERY_SECONDS="1",
        PWD=str(PROJECT),  # where prefect.yaml says that runs work
    )
    return Site(home, port, env)


def _prefect(site: Site, *arguments: str) -> str:
    done = subprocess.run(
        [*PREFECT, *arguments],
        cwd=PROJECT,
        env=site.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    if done.returncode != 0:
        raise RuntimeError(f"prefect {' '.join(arguments)}: {done.stdout[-500:]}")
    return done.stdout


def _deploy(site: Site, params: Path) -> str:
    """Ask for a run of the deployment; its id."""
    (deployment,) = [
        found
        for found in _post(site, "deployments/filter")
        if found["entrypoint"].startswith("flows/synthesize")
    ]
    path = f"deployments/{deployment['id']}/create_flow_run"
    run: str = _post(site, path, parameters={"params": str(params)})["id"]
    return run


def _post(site: Site, path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        f"{site.api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _state(site: Site, run: str) -> str:
    state: str = site.ask(f"flow_runs/{run}")["state_type"]
    return state


def _alive(run: str) -> bool:
    """Whether a process executes the run: Prefect names the run in its environment."""
    mark = f"PREFECT__FLOW_RUN_ID={run}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes():
                return True
    return False


def _wait(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing came in {seconds:.0f} s")


@contextlib.contextmanager
def _server(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers, in a process group of its own."""
    arguments = ("server", "start", "--no-ui", "--host", "127.0.0.1", "--port", str(site.port))
    with _background(site, *arguments) as process:

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return bool(site.ask("health"))
            return False

        _wait(answers, 120)
        yield process


@contextlib.contextmanager
def _background(site: Site, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with (site.home / f"{arguments[0]}.log").open("ab") as log:
        process = subprocess.Popen(
            [*PREFECT, *arguments],
            cwd=PROJECT,
            env=site.env,
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
