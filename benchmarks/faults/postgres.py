"""Compare Prefect's server on PostgreSQL and on SQLite under many shard tasks at once.

    python -m benchmarks.faults.postgres [--tasks 400] [--slots 16] [--flows 1] [--seconds 0.1]
        [--out F]

The script starts a PostgreSQL server in a temporary directory. `initdb` and `postgres` of any
version must be on the PATH; root runs them as the user `postgres`. For each database it starts a
Prefect server and `--flows` flow runs at the same time, each with `--slots` concurrent shard tasks
that only sleep. It reports the duration, the completed flow runs, the task runs that the server
lists as completed, and the number of log lines about a locked database. The exit code is 1 if a
flow run failed, a task is missing or a database was locked on PostgreSQL.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOCKED = re.compile(r"database (?:table )?is locked|deadlock detected|could not obtain lock", re.I)
PATIENCE = 120  # Seconds for a server to start, and to store the last task runs.


@dataclass(frozen=True, slots=True)
class Nap:
    number: int
    seconds: float
    images: int = 1

    def __str__(self) -> str:
        return f"shard-{self.number:06d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Results of one database.

    Attributes:
        seconds: From the start of the first flow's process to the end of the last.
        locked: Number of log lines about a locked database.
    """

    database: str
    seconds: float
    completed_flows: int
    completed_tasks: int
    locked: int


def nap(job: Nap, device: str, report: Callable[[float], None]) -> int:
    time.sleep(job.seconds)
    return job.number


def run_flow(options: argparse.Namespace) -> int:
    """Run one flow of shard tasks with the runner that the flows use."""
    from prefect import flow

    from benchmarks.scale.devices import Threads
    from flows.running import prefect_runner

    @flow(name="naps", persist_result=False)
    def naps() -> int:
        jobs = [Nap(number, options.seconds) for number in range(options.tasks)]
        return len(prefect_runner(Threads(options.slots), retries=0)(nap, jobs, "naps"))

    return int(naps() != options.tasks)


def trial(options: argparse.Namespace, name: str, url: str | None, home: Path) -> Trial:
    """Run all flows on a new Prefect server with the database ``url`` (None: SQLite)."""
    home.mkdir()
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"DO_NOT_TRACK": "1", "PREFECT_HOME": str(home)}
    environment |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment |= {"PREFECT_SERVER_LOGGING_LEVEL": "WARNING"}
    database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url} if url else {}
    server = ("prefect", "--no-prompt", "server", "start", "--no-ui", "--port", str(port))
    log = home / "log"
    with background(log, sys.executable, "-m", *server, env=environment | database):
        wait_until(lambda: answers(f"{api}/health"), f"no Prefect server: {log}")
        started = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.faults.postgres", "--as-flow", *sys.argv[1:]]
        with log.open("ab") as output:
            runs = [
                subprocess.Popen(
                    command,
                    env={**environment, "PREFECT_API_URL": api},
                    stdout=output,
                    stderr=output,
                )
                for _ in range(options.flows)
            ]
            codes = [run.wait() for run in runs]
        seconds = time.perf_counter() - started
        expected = options.flows * options.tasks
        with contextlib.suppress(TimeoutError):  # The server stores task runs with a delay.
            wait_until(lambda: completed_tasks(api) >= expected, "")
        found = completed_tasks(api)
    return Trial(
        database=name,
        seconds=seconds,
        completed_flows=codes.count(0),
        completed_tasks=found,
        locked=sum(1 for line in log.read_text().splitlines() if LOCKED.search(line)),
    )


@contextlib.contextmanager
def postgres(place: Path) -> Iterator[str]:
    """Start a PostgreSQL server that nobody else reaches; yield the URL for Prefect."""
    data, port = place / "data", free_port()
    data.mkdir()
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(data, user)
    setup = ("initdb", "--auth=trust", "--username=prefect", "--encoding=UTF8", f"--pgdata={data}")
    subprocess.run(setup, user=user, check=True, cwd=data, stdout=subprocess.DEVNULL)
    binaries = Path(shutil.which("initdb") or "").resolve().parent
    options = ("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={data}")
    log = place / "postgres.log"
    server = (str(binaries / "postgres"), "-D", str(data), "-p", str(port), *options)
    with background(log, *server, env=dict(os.environ), user=user, stop=signal.SIGINT):
        wait_until(lambda: listens(port), f"no PostgreSQL server: {log}")
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def background(
    log: Path,
    *arguments: str,
    env: dict[str, str],
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[None]:
    """Run a process during the ``with`` block, with its output in ``log``."""
    with log.open("ab") as output:
        process = subprocess.Popen(arguments, env=env, user=user, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.send_signal(stop)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def completed_tasks(api: str) -> int:
    query = {"task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    request = urllib.request.Request(
        f"{api}/task_runs/count", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return int(json.load(answer))


def answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(url, timeout=5).close()
        return True
    return False


def listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 5).close()
        return True
    return False


def wait_until(holds: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(problem)
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def table(trials: Sequence[Trial], options: argparse.Namespace) -> str:
    lines = [
        f"{options.flows} flow runs of {options.tasks} tasks, {options.slots} at once each",
        "| database | seconds | flows completed | tasks completed | locked |",
        "|---|---|---|---|---|",
    ]
    for one in trials:
        cells: list[Any] = [one.database, round(one.seconds, 1)]
        cells += [one.completed_flows, one.completed_tasks, one.locked]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Prefect's server on PostgreSQL and on SQLite.")
    parser.add_argument("--tasks", type=int, default=400, help="tasks of each flow run")
    parser.add_argument("--slots", type=int, default=16, help="concurrent tasks of each flow run")
    parser.add_argument("--flows", type=int, default=1, help="concurrent flow runs")
    parser.add_argument("--seconds", type=float, default=0.1, help="duration of a task")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--as-flow", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_flow:
        return run_flow(options)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)  # PostgreSQL may run as another user.
        with postgres(place) as url:
            trials = [trial(options, "PostgreSQL", url, place / "postgresql")]
        trials.append(trial(options, "SQLite", None, place / "sqlite"))
    sys.stdout.write(table(trials, options))
    if options.out:
        facts = {**vars(options), "out": None, "trials": [asdict(one) for one in trials]}
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    ours = trials[0]
    complete = (ours.completed_flows, ours.completed_tasks)
    return int(complete != (options.flows, options.flows * options.tasks) or ours.locked > 0)


if __name__ == "__main__":
    sys.exit(main())
