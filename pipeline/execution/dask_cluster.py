"""The third executor: the workers of a Dask cluster that somebody else runs, by its address.

Needs the extra ``dask``; workers need it too, with torch and this package, and nothing of Prefect.
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

CONNECT = 7.0  # seconds for the scheduler to answer
REPORT_EVERY = 1.0  # seconds between a worker's reports of progress
TOPIC = "dreamshard"  # of Dask's event log, which keeps the last 100,000 events of a topic


class DaskCluster:
    """Jobs as Dask tasks. A worker that is lost loses its job to another; Dask sees to that."""

    def __init__(
        self, address: str, device: str, workers: int | None, outputs: Mapping[str, str]
    ) -> None:
        """Connect, and ask every worker whether it can do this run's work.

        Args:
            address: of the scheduler, such as ``tcp://10.0.0.1:8786``.
            device: ``auto`` is decided by each worker.
            workers: jobs given to the cluster at once; None for as many as it has workers.
            outputs: directories or URLs that the workers have to share with this process, by the
                parameter that names each.

        Raises:
            UserError: nothing answers there, or a worker must not do this work.
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
        self._client.subscribe_topic(TOPIC, self._hear)

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
            if self._client.status in ("closing", "closed"):  # then no answer would ever come
                raise ClosedClientError
            return future.result()
        except ClosedClientError as error:
            raise ConnectionError(f"the Dask scheduler at {self._address} went away") from error
        except (KilledWorker, CancelledError, Stopped) as error:
            if self._stopped:
                raise Stopped("stopped") from error
            raise WorkerDied(f"the Dask cluster lost {job}: {first_line(error)}") from error
        finally:
            with self._lock:
                self._running.pop(key, None)
                self._progress.pop(key, None)

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
        """Before any work: every worker there now is one that can do it."""
        with contextlib.ExitStack() as held:
            witnesses = {
                key: held.enter_context(_witness(key, place)) for key, place in outputs.items()
            }
            answers = self._client.run(
                _problem, self._software, self._device, witnesses, on_error="return"
            )
        if not answers and self._wanted is None:
            raise UserError(
                f"the Dask cluster at {self._address} has no workers: start some, or set "
                "execution.workers if it starts them when there is work"
            )
        for address, answer in answers.items():
            if isinstance(answer, ImportError):
                answer = f"has no dreamshard ({answer}): install it there"
            if isinstance(answer, str):
                raise UserError(f"the Dask worker {address} {answer}")

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """What a worker's :func:`_reporter` said; of another run or too late, it is ignored."""
        message = event[1]
        with self._lock:
            if message["key"] in self._progress:
                self._progress[message["key"]] = message["done"]


def _connect(address: str) -> Client:
    try:
        asyncio.run(_ask(address))
        return Client(address, timeout=CONNECT, set_as_default=False)
    except Exception as error:  # another service behind that port provokes any kind
        raise UserError(
            f"execution.dask_address is {address}, and no Dask scheduler answers there "
            f"({first_line(error)}): start one with `dask scheduler`, or set the address to null "
            "to work on this machine"
        ) from error


async def _ask(address: str) -> None:
    """A client waits for ever where something answers that is no scheduler; this does not."""
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
    """A file in ``output``, which ``key`` names, or in what there is above it: while the block
    lasts."""
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
    """A task: refuse what would be recorded wrongly, then do the job as any other worker would."""
    worker = get_worker()
    problem = _problem(software, device, {}, worker)
    if problem is not None:  # of a worker that came after the run had begun
        raise UserError(f"the Dask worker {worker.address} {problem}")
    try:
        return work(job, _device(device), _reporter(worker))
    except UserError as error:
        raise UserError(f"{error} (on the Dask worker {worker.address})") from error


def _problem(
    software: dict[str, str], device: str, witnesses: Mapping[str, str], dask_worker: Worker
) -> str | None:
    """Why this worker must not work for a run of ``software``, or None. Dask fills in the last."""
    threads = dask_worker.state.nthreads
    if threads != 1:  # jobs side by side in a process would set each other's torch threads
        return f"has {threads} threads and jobs need one each: start it with --nthreads 1"
    for name, found in _software().items():
        if found != software[name]:
            return (
                f"runs another version of {name} than this run ({found[:12]}, not "
                f"{software[name][:12]}), and its shards would be recorded as made by this one: "
                "install the same there and start it again"
            )
    if device == "cuda" and _device("auto") != "cuda":
        return "has no CUDA device and execution.device is cuda: use cpu or auto"
    for key, witness in witnesses.items():
        try:
            if not exists(location(witness)):
                return (
                    f"does not see what this run writes to {key} (it looks for {witness} "
                    f"from {Path.cwd()}): share that directory under the same path, start the "
                    "worker where the run starts, or name a URL"
                )
        except (OSError, UserError) as error:
            return f"cannot open {key}: {error}"
    return None


@functools.cache
def _software() -> dict[str, str]:
    """What a shard's bytes depend on, as it was when this process began to use it."""
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
    """Adds up a job's progress and says it now and then; ends a job that nobody waits for."""
    key = str(worker.get_current_task())
    done, told = 0.0, time.monotonic()

    def report(amount: float) -> None:
        nonlocal done, told
        task = worker.state.tasks.get(key)
        if task is None or task.state != "executing":  # the run was stopped, or killed
            raise Stopped("stopped")
        done += amount
        if time.monotonic() - told >= REPORT_EVERY:
            told = time.monotonic()
            worker.log_event(TOPIC, {"key": key, "done": done})

    return report
