"""A Prefect server that is killed in the middle of a deployment run and restarted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.faults.common import (
    LIMIT,
    Outcome,
    Params,
    at,
    dataset,
    difference,
    parameters,
    tree,
    undisturbed,
)
from benchmarks.faults.prefect_site import Site, background, make_site, prefect, serving, wait_until

AWAY = 5.0  # Seconds without a server.


def server(place: Path, count: int, rng: random.Random) -> Outcome:
    """Kill the server while a worker executes a deployment run, and start the server again."""
    params = parameters(place)
    expected, _ = undisturbed(params, place / "calm")
    outcome, runs = Outcome(), []
    for turn in range(count):
        here = at(params, place / f"fresh-{turn}")
        site = make_site(place / f"prefect-{turn}")
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
    """Kill the server when ``shards`` are complete; repeat the run if it does not finish."""
    root = dataset(here)
    root.parent.mkdir(parents=True)
    file = root.parent / "params.yaml"
    file.write_text(json.dumps(here))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serving(site))
        prefect(site, "work-pool", "create", "local", "--type", "process")
        prefect(site, "deploy", "--all")
        stack.enter_context(background(site, "worker", "start", "--pool", "local"))
        run = _deploy(site, file)
        wait_until(lambda: len(list((root / "metadata").glob("0*.json"))) >= shards, LIMIT)
        if not _alive(run):
            raise RuntimeError("the run ended before the server was killed")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        time.sleep(AWAY)
        stack.enter_context(serving(site))
        wait_until(lambda: not _alive(run), LIMIT)
        completed = tree(root) == expected
        if not completed:
            following = _deploy(site, file)
            wait_until(lambda: _state(site, following) == "COMPLETED", LIMIT)
        return {
            "killed at shard": shards,
            "completed by that run": completed,
            "its state": _state(site, run),
        }


def _deploy(site: Site, params: Path) -> str:
    """Start a run of the deployment, and return its id."""
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
    """Return whether a process executes the run, whose id is in its environment."""
    mark = f"PREFECT__FLOW_RUN_ID={run}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes():
                return True
    return False
