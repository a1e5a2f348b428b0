"""Cut one of two hosts with Dask workers off from the network in the middle of a shard.

    python -m benchmarks.faults.hosts [--storage local|s3|ceph] [--freeze] [--shards 24]
        [--out FILE.json]

Three network namespaces with their own addresses are connected by a bridge. The first has the
scheduler, the run and moto's S3 server. The other two are hosts with a Dask worker each. While a
worker makes a shard, its link goes down. The link comes back after the scheduler has given the
worker up and two more shards are complete. With `--freeze` the worker's processes are stopped for
the same time, so that they continue inside a shard that another worker has made since. The dataset
must equal the one of a single process, also after the worker came back; otherwise the exit code is
1. The script needs root, `ip` of iproute2, and the extras `dask` and `dev`.

Dask's time-outs are the defaults. `distributed.comm.timeouts.tcp`, 30 s, detects the cut on both
sides. A Dask worker that lost its scheduler ends, and a loop starts it again, as systemd would.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distributed import Client
from upath import UPath

from benchmarks.faults.ceph import ceph_server
from benchmarks.faults.common import (
    PROJECT,
    Params,
    at,
    changed,
    difference,
    finish,
    kill_tree,
    parameters,
)
from pipeline.execution.dask_cluster import TOPIC
from pipeline.storage import digest_bytes, listing, location, read_many

MAIN, CUT, OTHER = "10.213.77.1", "10.213.77.2", "10.213.77.3"
SCHEDULER, S3 = f"tcp://{MAIN}:8786", f"http://{MAIN}:5000"
_RECORD = re.compile(r"metadata/\d+\.json")
LIMIT, QUIET = 600.0, 45.0  # Seconds to wait for events, and to watch the returned worker.


def main() -> int:
    parser = argparse.ArgumentParser(description="A worker's host is cut off.")
    parser.add_argument("--storage", choices=("local", "s3", "ceph"), default="local")
    parser.add_argument("--freeze", action="store_true", help="stop the worker's processes too")
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument(
        "--iterations", type=int, default=1000, help="iterations of a shard, enough to take seconds"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)  # Names of the namespaces.
    options = parser.parse_args()
    if options.inside is None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            sys.exit("benchmarks.faults.hosts needs root and iproute2's ip")
        with _network() as names:
            again = [
                sys.executable,
                "-m",
                "benchmarks.faults.hosts",
                *sys.argv[1:],
                "--inside",
                *names,
            ]
            return subprocess.run([*_in(names[0]), *again], cwd=PROJECT, check=False).returncode
    facts = {name: getattr(options, name) for name in ("storage", "freeze", "shards")}
    with tempfile.TemporaryDirectory(prefix="hosts-") as place:
        size = {"synthesis.images": 6 * options.shards, "synthesis.iterations": options.iterations}
        params = parameters(Path(place), {**size, "adaptive.rounds": 0})
        _try(Path(place), params, options.inside, facts)
    for name, value in facts.items():
        sys.stdout.write(f"{name:<24} {value}\n")
    if options.out:
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    return int(bool(facts["differs"] or facts["differs afterwards"]))


def _try(place: Path, params: Params, names: list[str], facts: dict[str, Any]) -> None:
    """Run the whole trial in the first namespace, and write observations to ``facts``."""
    alone = at(params, place / "alone")
    started = time.monotonic()
    if finish(changed(alone, {"execution.workers": 1})) != 0:
        raise RuntimeError("the run in process failed")
    facts["in process, s"] = round(time.monotonic() - started, 1)
    expected = _tree(alone["paths"]["dataset"])

    output = "s3://hosts/dataset" if facts["storage"] != "local" else str(place / "dask/dataset")
    remote = changed(at(params, place / "dask"), {"execution.dask_address": SCHEDULER})
    remote = changed(remote, {"paths.dataset": output, "execution.retries": 2})
    (place / "params.yaml").write_text(json.dumps(remote))
    with contextlib.ExitStack() as stack:
        if facts["storage"] != "local":
            _start_s3(stack, place, facts["storage"])
        client = _start_cluster(stack, place, names)
        started = time.monotonic()
        run = _start(
            stack,
            place / "run.log",
            *_python("pipeline synthesize --params"),
            place / "params.yaml",
        )
        _cut_and_restore(client, output, names[1] if facts["freeze"] else None, facts)
        _wait(lambda: run.poll() is not None, "the end of the run")
        facts["on two hosts, s"] = round(time.monotonic() - started, 1)
        if run.returncode != 0:
            raise RuntimeError(f"the run failed: {(place / 'run.log').read_text()[-2000:]}")
        facts["differs"] = difference(_tree(output), expected)
        facts["back after, s"] = _wait(lambda: _worker(client, CUT) != "", "the worker's return")
        time.sleep(QUIET)
        facts["differs afterwards"] = difference(_tree(output), expected)


def _cut_and_restore(
    client: Client, output: str, frozen: str | None, facts: dict[str, Any]
) -> None:
    """Cut off the host of a worker inside a shard; restore the link two shards later."""
    inside: set[str] = set()
    client.subscribe_topic(TOPIC, lambda event: inside.add(event[1]["key"]))

    def caught() -> set[str]:
        return inside & set(client.processing().get(_worker(client, CUT), ()))

    _wait(lambda: _complete(output) >= 2 and bool(caught()), "a worker inside a shard")
    facts["cut off inside"] = min(caught()).rpartition("-")[0]
    _ip("link set host0 down")
    _signal(frozen, signal.SIGSTOP)
    facts["noticed after, s"] = _wait(lambda: _worker(client, CUT) == "", "the cut to be noticed")
    enough = min(_complete(output) + 2, facts["shards"])
    _wait(lambda: _complete(output) >= enough, "two more shards")
    _ip("link set host0 up")
    _signal(frozen, signal.SIGCONT)
    facts["link up at shard"] = _complete(output)


@contextlib.contextmanager
def _network() -> Iterator[list[str]]:
    """Create three namespaces on a bridge in the first of them."""
    names = [f"dreamshard{os.getpid()}{kind}" for kind in "abc"]
    try:
        for name in names:
            _ip(f"netns add {name}")
            _ip(f"-n {name} link set lo up")
        _ip(f"-n {names[0]} link add bridge type bridge")
        _ip(f"-n {names[0]} addr add {MAIN}/24 dev bridge")
        _ip(f"-n {names[0]} link set bridge up")
        for end, host, address in zip(("host0", "host1"), names[1:], (CUT, OTHER), strict=True):
            _ip(f"-n {names[0]} link add {end} type veth peer name eth0 netns {host}")
            _ip(f"-n {names[0]} link set {end} master bridge up")
            _ip(f"-n {host} addr add {address}/24 dev eth0")
            _ip(f"-n {host} link set eth0 up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def _start_s3(stack: contextlib.ExitStack, place: Path, kind: str) -> None:
    """Start moto's server or Ceph's gateway with one empty bucket; set the variables to find it."""
    os.environ.update(AWS_ACCESS_KEY_ID="hosts", AWS_SECRET_ACCESS_KEY="hosts")
    os.environ.update(AWS_DEFAULT_REGION="us-east-1", AWS_ENDPOINT_URL=S3)
    if kind == "ceph":
        stack.enter_context(ceph_server(place / "ceph", 5000, "hosts", "hosts", MAIN))
    else:
        _start(stack, place / "s3.log", *_python(f"moto.server -H {MAIN} -p 5000"))
    bucket = UPath("s3://hosts")

    def made() -> bool:
        with contextlib.suppress(OSError):
            bucket.mkdir(exist_ok=True)
            return True
        return False

    _wait(made, "the S3 server")


def _start_cluster(stack: contextlib.ExitStack, place: Path, names: list[str]) -> Client:
    """Start a scheduler, and a worker in each other namespace; return a client."""
    scheduler = f"distributed.cli.dask_scheduler --host {MAIN} --port 8786 --no-dashboard"
    _start(stack, place / "scheduler.log", *_python(scheduler))
    for name, address in zip(names[1:], (CUT, OTHER), strict=True):
        options = f"--host {address} --nthreads 1 --memory-limit 0 --no-dashboard"
        once = " ".join(_python(f"distributed.cli.dask_worker {SCHEDULER} {options}"))
        forever = ("sh", "-c", f"while true; do {once}; sleep 1; done")
        _start(stack, place / f"{address}.log", *_in(name), *forever)
    client: Client = stack.enter_context(Client(SCHEDULER, timeout=120))
    client.wait_for_workers(2, timeout=120)
    return client


def _start(stack: contextlib.ExitStack, log: Path, *command: object) -> subprocess.Popen[bytes]:
    """Start a command in the background. It and its descendants end with the stack."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    stack.callback(kill_tree, process)
    return process


def _signal(namespace: str | None, number: signal.Signals) -> None:
    """Send a signal to all processes of a namespace."""
    if namespace is not None:
        listed = subprocess.run(["ip", "netns", "pids", namespace], check=True, capture_output=True)
        for pid in listed.stdout.split():
            os.kill(int(pid), number)


def _wait(holds: Callable[[], bool], what: str) -> float:
    """Wait until ``holds()``, and return the seconds."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() > started + LIMIT:
            raise RuntimeError(f"{what} did not happen in {LIMIT:.0f} s")
        time.sleep(0.25)
    return round(time.monotonic() - started, 1)


def _worker(client: Client, host: str) -> str:
    """Return the address of the worker of ``host``, or nothing."""
    return next((name for name in client.nthreads() if f"//{host}:" in name), "")


def _complete(output: str) -> int:
    return sum(_RECORD.fullmatch(name) is not None for name in listing(location(output)))


def _tree(output: str) -> dict[str, str]:
    """Return the SHA-256 of each file below ``output``, by relative path."""
    root = location(output)
    names = sorted(listing(root))
    contents = read_many([root / name for name in names])
    return {n: digest_bytes(c or b"") for n, c in zip(names, contents, strict=True)}


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", *module.split()]


def _in(name: str) -> list[str]:
    return ["ip", "netns", "exec", name]


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


if __name__ == "__main__":
    sys.exit(main())
