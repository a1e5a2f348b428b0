"""A separate Prefect server, worker and commands, for benchmarks that run deployments."""

from __future__ import annotations

import contextlib
import json
import os
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

from benchmarks.faults.common import LIMIT, PROJECT, environment

PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")


@dataclass(frozen=True, slots=True)
class Site:
    """The address of a server, and the environment in which commands find it."""

    home: Path
    port: int
    env: dict[str, str]

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.api}/{path}", timeout=10) as answer:
            return json.load(answer)


def make_site(home: Path) -> Site:
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = environment(
        PREFECT_HOME=str(home),
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_WORKER_QUERY_SECONDS="1",
        PWD=str(PROJECT),  # The working directory of runs in prefect.yaml.
    )
    return Site(home, port, env)


def prefect(site: Site, *arguments: str) -> str:
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


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return
        time.sleep(0.05)
    raise RuntimeError(f"an expected event did not happen in {seconds:.0f} s")


@contextlib.contextmanager
def serving(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a new process group during the ``with`` block."""
    arguments = ("server", "start", "--no-ui", "--host", "127.0.0.1", "--port", str(site.port))
    with background(site, *arguments) as process:

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return bool(site.ask("health"))
            return False

        wait_until(answers, 120)
        yield process


@contextlib.contextmanager
def background(site: Site, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
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
