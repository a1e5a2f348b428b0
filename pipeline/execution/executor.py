"""The one seam to the hardware: run a job in this process, or in one long-lived process a device.

Imports neither torch nor a job's module before a worker has been pinned to its device.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_double
from multiprocessing.connection import Connection
from typing import Any, Protocol

from pipeline.errors import UserError

Work = Callable[[Any, str, Callable[[float], None]], Any]  # (job, device, report) -> result


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of a job. The job can be run again."""


class Stopped(RuntimeError):
    """The run was told to stop; the job is not complete and nothing of it was published."""


class Executor(Protocol):
    """Runs jobs; may be called from ``workers`` threads at once."""

    @property
    def workers(self) -> int: ...

    def run(self, work: Work, job: Any) -> Any:
        """``work(job, device, report)`` on a free device; blocks until it is done."""

    def in_flight(self) -> float:
        """Progress of the jobs that run now, as they reported it."""

    def stop(self) -> None:
        """Abandon the jobs that run now; every later one raises :class:`Stopped`."""

    def close(self) -> None:
        """End the workers, which have nothing left to do."""


class InProcess:
    """One device, this process."""

    workers = 1

    def __init__(self, device: str) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._progress = 0.0
        self._stopped = False

    def run(self, work: Work, job: Any) -> Any:
        with self._lock:
            if self._stopped:
                raise Stopped("stopped")
            try:
                return work(job, self._device, self._report)
            finally:
                self._progress = 0.0

    def in_flight(self) -> float:
        return self._progress

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        pass

    def _report(self, amount: float) -> None:
        if self._stopped:
            raise Stopped("stopped")
        self._progress += amount


class PerDevice:
    """A long-lived process for each device. One that dies is replaced, and its job raises."""

    def __init__(self, devices: list[dict[str, str]], device: str) -> None:
        self.workers = len(devices)
        # Workers end when something comes out of it: stop() said so, or this process is dead.
        alive, self._alive = multiprocessing.Pipe(duplex=False)
        self._slots = [_Slot(environment, device, alive) for environment in devices]
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._stopped = False
        for slot in self._slots:
            self._free.put(slot)

    def run(self, work: Work, job: Any) -> Any:
        slot = self._free.get()
        try:
            if self._stopped:
                raise Stopped("stopped")
            return slot.run(work, job)
        except WorkerDied as error:
            if self._stopped:
                raise Stopped("stopped") from error
            raise
        finally:
            self._free.put(slot)

    def in_flight(self) -> float:
        return float(sum(slot.progress.value for slot in self._slots))

    def stop(self) -> None:
        self._stopped = True
        self._alive.send(None)

    def close(self) -> None:
        for slot in self._slots:
            slot.close()


class _Slot:
    """One device and the process that serves it."""

    def __init__(self, environment: dict[str, str], device: str, alive: Connection) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._environment, self._device, self._alive = environment, device, alive
        self.progress: Any = self._context.Value(c_double, lock=False)
        self._pool = self._new_pool()

    def run(self, work: Work, job: Any) -> Any:
        try:
            return self._pool.submit(_serve, work, job).result()
        except BrokenProcessPool as error:
            self._pool.shutdown()
            self._pool = self._new_pool()
            raise WorkerDied(f"the worker that ran {job} died") from error
        finally:
            self.progress.value = 0.0

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        arguments = (self._environment, self._device, self.progress, self._alive)
        return ProcessPoolExecutor(1, self._context, _start_worker, arguments)


def create_executor(device: str, workers: int | None, threads: int) -> Executor:
    """The executor for jobs of ``threads`` CPU threads each.

    Args:
        device: ``auto`` takes CUDA where there is one.
        workers: processes; None takes one a GPU, or as many as the cores hold.
    """
    if device == "auto":
        device = "cuda" if _cuda_devices() else "cpu"
    if device == "cuda":
        if not _cuda_devices():
            raise UserError("execution.device is cuda, but there is no CUDA device here: use cpu")
        devices = [{"CUDA_VISIBLE_DEVICES": name} for name in _cuda_devices()]
    else:
        devices = [{} for _ in range(workers or max(1, _cores() // threads))]
    devices = devices[:workers]
    return InProcess(device) if len(devices) == 1 else PerDevice(devices, device)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cuda_devices() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


_device = ""
_progress: Any = None


def _start_worker(
    environment: dict[str, str], device: str, progress: Any, alive: Connection
) -> None:
    global _device, _progress
    os.environ.update(environment)
    _device, _progress = device, progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    threading.Thread(target=_die_with_parent, args=(alive,), daemon=True).start()


def _die_with_parent(alive: Connection) -> None:
    """A run that ended must not leave workers that write into the next one's output."""
    alive.poll(None)
    os._exit(1)


def _serve(work: Work, job: Any) -> Any:
    return work(job, _device, _report)


def _report(amount: float) -> None:
    _progress.value += amount
