"""Executor that runs jobs on the workers of a Dask cluster, given the scheduler's address.

This process and the workers need the extra ``dask``. Workers also need torch and this package. They
do not need Prefect.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distributed import Client, Future, KilledWorker, Security, Worker, get_worker, rpc
from distributed.client import ClosedClientError

from pipeline.errors import UserError, first_line
from pipeline.execution.executor import Stopped, Work, WorkerDied
from pipeline.source_digest import PACKAGE, source_digest
from pipeline.storage import exists, location, remove, write_bytes

CONNECT = 7.0  # Seconds that the scheduler has to answer.
REPORT_EVERY = 1.0  # Seconds between two progress reports of a worker.
TOPIC = "dreamshard"  # Topic of Dask's event log, which keeps a topic's last 100,000 events.


class DaskCluster:
    """Executor whose jobs are Dask tasks. Dask gives the job of a lost worker to another worker."""

    def __init__(
        self, address: str, device: str, workers: int | None, outputs: Mapping[str, str]
    ) -> None:
        """Connect to the scheduler and check every worker.

        Args:
            address: Address of the scheduler, such as ``tcp://10.0.0.1:8786``.
            device: ``cpu``, ``cuda``, or ``auto``, which each worker decides for itself.
            workers: Number of jobs given to the cluster at once; None for its number of workers.
            outputs: Directories or URLs that the workers must share with this process, by the
                parameter that names each.

        Raises:
            UserError: No scheduler answers, or a worker cannot do this run's work.
        """
        self._address, self._device, self._wanted = address, device, workers
        self._software = _software()
        self._lock = threading.Lock()
        self._running: dict[str, Future[Any]] = {}
        self._progress: dict[str, float] = {}
        self._stopped = False
        self._client = _connect(address)
        try:
            self._inspect(outputs)
        except BaseException:
            self._client.close()
            raise
        self._client.subscribe_topic(TOPIC, self._note_progress)

    @property
    def workers(self) -> int:
        return self._wanted or max(1, len(self._client.nthreads()))

    def run(self, work: Work, job: Any) -> Any:
        key = f"{job}-{uuid.uuid4().hex}"
        try:
            with self._lock:
                if self._stopped:
                    raise Stopped("stopped")
                self._progress[key] = 0.0
                future = self._running[key] = self._client.submit(
                    _serve, work, job, self._device, self._software, key=key, pure=False
                )
            # A closed client would wait for the result for ever.
            if self._client.status in ("closing", "closed"):
                raise ClosedClientError
            return future.result()
        except ClosedClientError as error:
            raise ConnectionError(
                f"the connection to the Dask scheduler at {self._address} was lost: "
                "run the command again when it is back"
            ) from error
        except (KilledWorker, CancelledError, Stopped) as error:
            if self._stopped:
                raise Stopped("stopped") from error
            raise WorkerDied(f"the Dask cluster lost {job}: {first_line(error)}") from error
        finally:
            with self._lock:
                self._running.pop(key, None)
                self._progress.pop(key, None)

    def loss(self) -> float | None:
        """None: the workers send only their progress."""
        return None

    def in_flight(self) -> float:
        with self._lock:
            return sum(self._progress.values())

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running.values())
        self._client.cancel(running)

    def close(self) -> None:
        self._client.close()

    def _inspect(self, outputs: Mapping[str, str]) -> None:
        """Check that every present worker can do this run's work."""
        with contextlib.ExitStack() as files:
            witnesses = {
                key: files.enter_context(_witness(key, place)) for key, place in outputs.items()
            }
            answers = self._client.run(
                _problem, self._software, self._device, witnesses, on_error="return"
            )
        if not answers and self._wanted is None:
            raise UserError(
                f"the Dask cluster at {self._address} has no workers: start some. If the cluster "
                "starts workers by itself when it has work, set execution.workers"
            )
        for address, answer in answers.items():
            if isinstance(answer, ImportError):
                answer = f"cannot import dreamshard ({answer}): install dreamshard there"
            if isinstance(answer, str):
                raise UserError(f"the Dask worker {address} {answer}")

    def _note_progress(self, event: tuple[float, dict[str, Any]]) -> None:
        """Note a worker's progress. Reports of other runs and of finished jobs are ignored."""
        message = event[1]
        with self._lock:
            if message["key"] in self._progress:
                self._progress[message["key"]] = message["done"]


def _connect(address: str) -> Client:
    try:
        asyncio.run(_check_scheduler(address))
        return Client(address, timeout=CONNECT, set_as_default=False)
    except Exception as error:  # Another service at that port may cause any kind of error.
        raise UserError(
            f"execution.dask_address is {address}, and no Dask scheduler answers there "
            f"({first_line(error)}): start one with `dask scheduler`, or set the address to null "
            "to run on this machine"
        ) from error


async def _check_scheduler(address: str) -> None:
    """Check that a Dask scheduler answers.

    A client would wait for ever if another service answered at this address.
    """
    arguments = Security().get_connection_args("client")
    async with (
        asyncio.timeout(CONNECT + 1),
        rpc(address, timeout=CONNECT, connection_args=arguments) as scheduler,
    ):
        identity = await scheduler.identity()
    if "n_workers" not in identity:
        raise ValueError(f"it is a {identity['type']}")


@contextlib.contextmanager
def _witness(key: str, output: str) -> Iterator[str]:
    """Write an empty file for workers to look for; delete it at the end of the ``with`` statement.

    The file lies in ``output``, the value of the parameter ``key``, or in the nearest parent
    directory that exists.
    """
    root = place = location(output)
    while isinstance(place, Path) and not place.is_dir():
        place = place.parent
    file = place / f".{uuid.uuid4().hex}.tmp"
    try:
        write_bytes(file, b"")
    except OSError as error:
        raise UserError(f"{key} {root} cannot be written: {error}") from error
    try:
        yield str(file)
    finally:
        remove(file)


def _serve(work: Work, job: Any, device: str, software: dict[str, str]) -> Any:
    """Do a job on a worker, after a check of the worker: a Dask task."""
    worker = get_worker()
    problem = _problem(software, device, {}, worker)
    if problem is not None:  # The worker joined the cluster after the run had begun.
        raise UserError(f"the Dask worker {worker.address} {problem}")
    try:
        return work(job, _device(device), _reporter(worker))
    except UserError as error:
        raise UserError(f"{error} (on the Dask worker {worker.address})") from error


def _problem(
    software: dict[str, str], device: str, witnesses: Mapping[str, str], dask_worker: Worker
) -> str | None:
    """Find the reason why a worker cannot do a run's work, or return None.

    Dask calls this function on each worker and passes the worker as ``dask_worker``.
    """
    threads = dask_worker.state.nthreads
    # Two jobs in one process would change each other's number of torch threads.
    if threads != 1:
        return f"has {threads} threads, but each job needs a process: start it with --nthreads 1"
    for name, installed in _software().items():
        if installed != software[name]:
            return (
                f"runs another version of {name} than this run ({installed[:12]} instead of "
                f"{software[name][:12]}), but records would name this run's version: install the "
                "same version there and start the worker again"
            )
    if device == "cuda" and _device("auto") != "cuda":
        return "has no CUDA device and execution.device is cuda: use cpu or auto"
    for key, witness in witnesses.items():
        try:
            if not exists(location(witness)):
                return (
                    f"does not see what this run writes to {key} (it looks for {witness} "
                    f"from {Path.cwd()}): mount that directory under the same path, start the "
                    f"worker in the directory where the run starts, or set {key} to a URL"
                )
        except (OSError, UserError) as error:
            return f"cannot open {key}: {error}"
    return None


@functools.cache
def _software() -> dict[str, str]:
    """Return the versions that a shard's bytes depend on, as of the first call in this process."""
    try:
        torch = version("torch").partition("+")[0]
    except PackageNotFoundError:
        torch = "none"
    return {"torch": torch, "dreamshard": source_digest(sorted(PACKAGE.rglob("*.py")))}


def _device(device: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _reporter(worker: Worker) -> Callable[[float], None]:
    """Create the report function of a job, which also ends a job that the run has abandoned."""
    key = str(worker.get_current_task())
    done, last = 0.0, time.monotonic()

    def report(amount: float) -> None:
        nonlocal done, last
        task = worker.state.tasks.get(key)
        if task is None or task.state != "executing":  # The run was stopped or killed.
            raise Stopped("stopped")
        done += amount
        if time.monotonic() - last >= REPORT_EVERY:
            last = time.monotonic()
            worker.log_event(TOPIC, {"key": key, "done": done})

    return report
