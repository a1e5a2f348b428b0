"""A dataset on an S3 server that fails: nothing may be lost, wrong or visible in part.

    python -m benchmarks.faults.s3 [--share 0.05] [--shards N] [--seed N] [--out FILE.json]

An S3 server (moto, in a child process) stands behind a proxy that disturbs a share of the requests:

error     the proxy answers 500 or 503 and does not forward the request
slow      the request is forwarded after up to two seconds
upload    half of a PUT's body is forwarded, then both connections are cut
answer    a PUT or DELETE is forwarded and done, then the connection is cut before the answer
download  half of the answer to a GET is sent, then the connection is cut

A run of a tiny teacher, `verify`, and one object large enough for a multipart upload use the proxy.
Meanwhile a watcher reads from the server itself. Every object under a final name must have the
bytes of a local run without faults, and a record may exist only if the shard's other files do. The
exit code is 1 if there was any problem.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3

from benchmarks.faults.ceph import ceph_server, missing_programs
from benchmarks.faults.common import (
    LIMIT,
    PROJECT,
    Outcome,
    changed,
    difference,
    environment,
    parameters,
    undisturbed,
)
from benchmarks.faults.run import machine, say
from pipeline.storage import digest_bytes, location, write_bytes

BUCKET = "dreams"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
KINDS = {
    "GET": ("error", "slow", "download"),
    "HEAD": ("error", "slow"),
    "PUT": ("error", "slow", "upload", "answer"),
    "DELETE": ("error", "slow", "answer"),
    "POST": ("error", "slow"),
}
PAGE = 100  # Names on one page of a listing. Real servers return 1,000.
LARGE = 110 * 2**20  # s3fs uploads in parts from 100 MiB on.
TEMPORARY = re.compile(r"(.*/)?\.[^/]*|.*\.checkpoint")


@contextlib.contextmanager
def s3_server(kind: str = "moto") -> Iterator[int]:
    """An empty S3 server in child processes, with one bucket; its port.

    Args:
        kind: ``moto``, which is made for tests, or ``ceph``, which people run in production.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with _moto(port) if kind == "moto" else _ceph(port):
        client(port).create_bucket(Bucket=BUCKET)
        yield port


@contextlib.contextmanager
def _moto(port: int) -> Iterator[None]:
    arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = environment(MOTO_S3_DEFAULT_MAX_KEYS=str(PAGE))
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(arguments, stdout=quiet, stderr=quiet, env=env)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _ceph(port: int) -> Iterator[None]:
    if missing := missing_programs():
        sys.exit(f"--server ceph needs {', '.join(missing)}: see benchmarks/faults/ceph.py")
    key, secret = CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"]
    with (
        tempfile.TemporaryDirectory(prefix="ceph-") as folder,
        ceph_server(Path(folder) / "ceph", port, key, secret),
    ):
        yield


def client(port: int) -> Any:
    """Return a client of the server itself, without the proxy."""
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


class Proxy(ThreadingHTTPServer):
    """Forwards requests to ``port`` and disturbs a ``share``; ``struck`` counts faults by kind."""

    daemon_threads = True

    def __init__(
        self,
        port: int,
        share: float,
        seed: int,
        slowest: float = 2.0,
        harms: tuple[str, ...] = ("error", "slow", "upload", "answer", "download"),
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.share, self.slowest, self._harms = port, share, slowest, harms
        self.struck: Counter[str] = Counter()
        self.requests = 0
        self._rng, self._lock = random.Random(seed), threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment that sends an S3 client to this proxy."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_address[1]}"}

    def draw(self, method: str, has_body: bool) -> tuple[str, float]:
        """Draw the fault of the next request, or "", and a number in [0, 1] for it."""
        with self._lock:
            self.requests += 1
            kind = ""
            if self._rng.random() < self.share:
                kinds = [k for k in KINDS[method] if k in self._harms]
                kinds = [k for k in kinds if has_body or k != "upload"]
                kind = self._rng.choice(kinds)
                self.struck[kind] += 1
            return kind, self._rng.random()

    @contextlib.contextmanager
    def serving(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind, chance = self.server.draw(self.command, bool(body))
        if kind == "error":
            self._error(chance)
            return
        if kind == "slow":
            time.sleep(chance * self.server.slowest)
        if kind == "upload":
            self._cut_upload(body)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        upstream.request(self.command, self.path, body, dict(self.headers.items()))
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if kind == "answer":
            self.close_connection = True
            return
        length = answer.headers["Content-Length"] if self.command == "HEAD" else len(data)
        self._answer(answer.status, dict(answer.headers.items()), str(length or 0))
        if kind == "download":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _error(self, chance: float) -> None:
        status, code = (500, "InternalError") if chance < 0.5 else (503, "SlowDown")
        text = f"<Error><Code>{code}</Code><Message>so said the proxy</Message></Error>".encode()
        self._answer(status, {"Content-Type": "application/xml"}, str(len(text)))
        if self.command != "HEAD":
            self.wfile.write(text)

    def _answer(self, status: int, headers: Mapping[str, str], length: str) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()

    def _cut_upload(self, body: bytes) -> None:
        lines = [f"{self.command} {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.headers.items() if name != "Expect"]
        head = "\r\n".join([*lines, "", ""]).encode()
        with socket.create_connection(("127.0.0.1", self.server.target)) as upstream:
            upstream.sendall(head + body[: len(body) // 2])
        self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class Watcher:
    """Reads all objects of the server repeatedly, and notes wrong ones."""

    def __init__(self, port: int, prefix: str, expected: Mapping[str, str]) -> None:
        self._client, self._prefix, self._expected = client(port), prefix, expected
        self._right: set[tuple[str, str]] = set()
        self.problems: list[str] = []
        self.looks = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watcher]:
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.02):
                self.look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join()

    def look(self) -> dict[str, str]:
        """Read all objects once; return their digests by name."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=self._prefix
        )
        etags = {
            entry["Key"].removeprefix(self._prefix): entry["ETag"]
            for page in pages
            for entry in page.get("Contents", [])
        }
        found = {name: self._digest(name, etag) for name, etag in sorted(etags.items())}
        for name in etags:
            shard = re.fullmatch(r"metadata/(\d{6})\.json", name)
            for other in (f"train/{shard[1]}.tar", f"metadata/{shard[1]}.parquet") if shard else ():
                if other not in etags:
                    self.problems.append(f"{name} was there before {other}")
        self.looks += 1
        return {name: digest for name, digest in found.items() if digest}

    def _digest(self, name: str, etag: str) -> str:
        if (name, etag) in self._right:
            return self._expected[name]
        try:
            answer = self._client.get_object(Bucket=BUCKET, Key=self._prefix + name)
        except self._client.exceptions.NoSuchKey:  # The object was deleted after the listing.
            return ""
        digest = digest_bytes(answer["Body"].read())
        if self._expected.get(name) == digest:
            self._right.add((name, answer["ETag"]))
        elif name in self._expected or not TEMPORARY.fullmatch(name):
            self.problems.append(f"{name} was seen with other bytes than it should have")
        return digest


def s3_faults(place: Path, share: float, shards: int, seed: int, server: str = "moto") -> Outcome:
    """The run, `verify` and the large object, all under faults."""
    outcome = Outcome()
    params = changed(parameters(place), {"synthesis.images": 6 * shards})
    expected, _ = undisturbed(params, place / "calm")
    params["paths"]["dataset"] = f"s3://{BUCKET}/{place.name}/dataset"
    with s3_server(server) as port, Proxy(port, share, seed).serving() as proxy:
        watcher = Watcher(port, f"{place.name}/dataset/", expected)
        env = environment(**proxy.environment)
        with watcher.watching():
            code = _finish(params, place, env, "synthesize")
        outcome.expect(code == 0, f"the run failed: {_said(place)}")
        outcome.expect(watcher.looks > 10, f"the watcher looked {watcher.looks} times only")
        outcome.problems += sorted(set(watcher.problems))
        wrong = difference(watcher.look(), expected)
        outcome.expect(not wrong, f"{wrong} differs from the local run")
        code = _finish(params, place, env, "verify", "--agreement", "0")
        outcome.expect(code == 0, f"verify: {_said(place)}")
        _large(outcome, port, proxy, place.name)
        outcome.faults = sum(proxy.struck.values())
        outcome.facts = {
            "files": len(expected),
            "requests": proxy.requests,
            **dict(sorted(proxy.struck.items())),
            "looks": watcher.looks,
        }
    return outcome


def _finish(params: Mapping[str, Any], place: Path, env: dict[str, str], *command: str) -> int:
    (place / "params.yaml").write_text(json.dumps(params))
    with (place / "run.log").open("wb") as log:
        arguments = [*command, "--params", str(place / "params.yaml")]
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=PROJECT,
            env=env,
            stdout=log,
            stderr=log,
            timeout=2 * LIMIT,
        ).returncode


def _said(place: Path) -> str:
    return (place / "run.log").read_text(errors="replace").strip()[-300:]


def _large(outcome: Outcome, port: int, proxy: Proxy, prefix: str) -> None:
    """Upload an object in parts from this process, while the watcher reads."""
    data = random.Random(0).randbytes(LARGE)
    watcher = Watcher(port, f"{prefix}/large/", {"object": digest_bytes(data)})
    os.environ.update(proxy.environment)
    with watcher.watching():
        write_bytes(location(f"s3://{BUCKET}/{prefix}/large/object"), data)
    outcome.expect(list(watcher.look()) == ["object"], "the large object is missing")
    outcome.problems += sorted(set(watcher.problems))


def main() -> int:
    parser = argparse.ArgumentParser(description="A dataset on an S3 server that fails.")
    parser.add_argument("--share", type=float, default=0.05, help="share of disturbed requests")
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", choices=("moto", "ceph"), default="moto")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="s3-faults-") as place:
        outcome = s3_faults(
            Path(place), options.share, options.shards, options.seed, options.server
        )
    outcome.seconds = round(time.monotonic() - started, 1)
    verdict = "BROKEN" if outcome.problems else "held"
    say(f"{verdict}: {outcome.faults} faults, {outcome.seconds:.0f} s, {outcome.facts}")
    for problem in outcome.problems[:10]:
        say(f"    {problem}")
    if options.out:
        report = {
            "machine": machine(),
            "server": options.server,
            "share": options.share,
            **asdict(outcome),
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
