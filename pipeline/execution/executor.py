"""Executors: run a job in this process, or in one long-lived process for each device.

A worker imports torch and a job's module only after it was assigned to its device.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_double
from multiprocessing.connection import Connection
from typing import Any, Protocol

from pipeline.execution.shown_loss import show_losses_by

Work = Callable[[Any, str, Callable[[float], None]], Any]
"""``work(job, device, report)``: does one job and returns its result."""


class WorkerDied(RuntimeError):
    """A worker process died during a job. The job can be run again."""


class Stopped(RuntimeError):
    """The run was stopped. The job is not complete, and nothing of it was published."""


class Executor(Protocol):
    """Runs jobs. Up to ``workers`` threads may call it at the same time."""

    @property
    def workers(self) -> int:
        """Number of jobs that can run at the same time."""

    def run(self, work: Work, job: Any) -> Any:
        """Run ``work(job, device, report)`` on a free device and wait for its result.

        Raises:
            Stopped: The run was stopped.
            WorkerDied: The worker process died.
        """

    def in_flight(self) -> float:
        """Return the progress that the running jobs have reported, in images."""

    def loss(self) -> float | None:
        """Return the mean of the losses that the running jobs show, or None."""

    def stop(self) -> None:
        """Abandon the running jobs. Every later job raises :class:`Stopped`."""

    def close(self) -> None:
        """End the workers, after all jobs are done."""


class InProcess:
    """Executor that runs one job at a time in this process.

    Args:
        device: ``cpu`` or ``cuda``.
    """

    workers = 1

    def __init__(self, device: str) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._progress = 0.0
        self._loss: float | None = None
        self._stopped = False

    def run(self, work: Work, job: Any) -> Any:
        with self._lock:
            if self._stopped:
                raise Stopped("stopped")
            show_losses_by(self._show_loss)
            try:
                return work(job, self._device, self._report)
            finally:
                show_losses_by(None)
                self._progress, self._loss = 0.0, None

    def in_flight(self) -> float:
        return self._progress

    def loss(self) -> float | None:
        return self._loss

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        pass

    def _report(self, amount: float) -> None:
        if self._stopped:
            raise Stopped("stopped")
        self._progress += amount

    def _show_loss(self, loss: float) -> None:
        self._loss = loss


class PerDevice:
    """Executor with one long-lived worker process for each device.

    A worker that dies is replaced, and its job raises :class:`WorkerDied`.

    Args:
        devices: Environment variables of each worker, which assign it to its device.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, devices: list[dict[str, str]], device: str) -> None:
        self.workers = len(devices)
        # Workers end when this pipe delivers something: stop() was called or this process died.
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

    def loss(self) -> float | None:
        shown = [slot.loss.value for slot in self._slots]
        known = [loss for loss in shown if not math.isnan(loss)]
        return sum(known) / len(known) if known else None

    def stop(self) -> None:
        self._stopped = True
        self._alive.send(None)

    def close(self) -> None:
        for slot in self._slots:
            slot.close()


_STARTING = threading.Lock()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module from processes that start inside the block.

    A process that is spawned imports the main module. A user's script without a guard
    ``if __name__ == "__main__":`` would run again in each worker. No job needs the main module.
    """
    main = sys.modules["__main__"]
    names = ("__file__", "__spec__")
    with _STARTING:
        hidden = {name: getattr(main, name) for name in names if hasattr(main, name)}
        try:
            for name in hidden:
                setattr(main, name, None)
            yield
        finally:
            for name, value in hidden.items():
                setattr(main, name, value)


class _Slot:
    """One device and its worker process."""

    def __init__(self, environment: dict[str, str], device: str, alive: Connection) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._environment, self._device, self._alive = environment, device, alive
        self.progress: Any = self._context.Value(c_double, lock=False)
        self.loss: Any = self._context.Value(c_double, math.nan, lock=False)
        self._pool = self._new_pool()

    def run(self, work: Work, job: Any) -> Any:
        try:
            with _without_main():
                future = self._pool.submit(_serve, work, job)
            return future.result()
        except BrokenProcessPool as error:
            self._pool.shutdown()
            self._pool = self._new_pool()
            raise WorkerDied(f"the worker process that ran {job} died") from error
        finally:
            self.progress.value, self.loss.value = 0.0, math.nan

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        arguments = (self._environment, self._device, self.progress, self.loss, self._alive)
        return ProcessPoolExecutor(1, self._context, _start_worker, arguments)


_device = ""
_progress: Any = None


def _start_worker(
    environment: dict[str, str], device: str, progress: Any, loss: Any, alive: Connection
) -> None:
    global _device, _progress
    os.environ.update(environment)
    _device, _progress = device, progress
    show_losses_by(lambda value: setattr(loss, "value", value))
    # These signals reach all processes. The parent decides what happens to the workers.
    for stop in (signal.SIGINT, signal.SIGHUP):
        signal.signal(stop, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=(alive,), daemon=True).start()


def _die_with_parent(alive: Connection) -> None:
    """End this worker with its run, so that it never writes into the next run's output."""
    alive.poll(None)
    os._exit(1)


def _serve(work: Work, job: Any) -> Any:
    return work(job, _device, _report)


def _report(amount: float) -> None:
    _progress.value += amount
