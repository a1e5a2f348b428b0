"""Run many jobs through an executor: side by side, tried again, with a progress bar."""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Protocol

from tqdm import tqdm

from pipeline.config.schema import Config
from pipeline.device.compiling import DISK_FULL
from pipeline.errors import UserError
from pipeline.execution.executor import (
    Executor,
    InProcess,
    Stopped,
    Work,
    WorkerDied,
    create_executor,
)
from pipeline.execution.torchrun import is_first


class Job(Protocol):
    """Anything with a name and a number of images to get through."""

    @property
    def images(self) -> int: ...


log = logging.getLogger(__name__)
# A full disk is as full the second time, and a loss comes out the same.
LASTING = (UserError, Stopped, OSError, FloatingPointError)
# Their message says all; any other error is for us to mend, and needs its traceback.
EXPLAINED = (*LASTING, WorkerDied)
NO_SPACE = (*DISK_FULL, errno.EROFS)
Runner = Callable[[Work, Sequence[Any], str], list[Any]]
"""``runner(work, jobs, description)``: the results of all jobs; raises if one failed for good."""
Serve = Callable[[Work, Any], Any]
"""``serve(work, job)``: the result of one job."""


class JobsFailed(RuntimeError):
    """Some jobs failed after every retry; the others are complete."""


@contextlib.contextmanager
def open_runner(
    config: Config,
    threads: int = 1,
    rank_device: str | None = None,
    outputs: Sequence[str] = ("dataset",),
) -> Iterator[Runner]:
    """A runner on the devices that ``execution`` names, for jobs of ``threads`` CPU threads; or of
    a process of torchrun's, on ``rank_device``. ``outputs`` are the fields of ``paths`` whose files
    the jobs read and write."""
    if rank_device is not None:
        yield rank_runner(rank_device)
        return
    with open_executor(config, threads, outputs) as executor:
        yield local_runner(executor, config.execution.retries)


@contextlib.contextmanager
def open_executor(
    config: Config, threads: int, outputs: Sequence[str] = ("dataset",)
) -> Iterator[Executor]:
    """The executor that ``execution`` asks for; its workers end with the block."""
    execution = config.execution
    if execution.dask_address is None:
        executor = create_executor(execution.device, execution.workers, threads)
    else:
        executor = _connect(execution.dask_address, config, outputs)
    try:
        yield executor
    finally:
        executor.close()


def _connect(address: str, config: Config, outputs: Sequence[str]) -> Executor:
    try:
        from pipeline.execution.dask_cluster import DaskCluster
    except ImportError as error:
        raise UserError(
            f"execution.dask_address needs the extra `dask` ({error}): "
            "pip install -c constraints.txt -e '.[dask]', or set it to null"
        ) from error
    execution = config.execution
    places = {f"paths.{name}": str(getattr(config.paths, name)) for name in outputs}
    return DaskCluster(address, execution.device, execution.workers, places)


def local_runner(executor: Executor, retries: int) -> Runner:
    """A runner of plain threads, for where there is no Prefect."""

    def run(work: Work, jobs: Sequence[Any], description: str) -> list[Any]:
        serve = until_full(executor)
        with progress_bar(executor, jobs, description) as finished:

            def one(job: Any) -> Any:
                result = _attempt(serve, work, job, retries)
                finished(job)
                return result

            with ThreadPoolExecutor(executor.workers) as pool, stopping(executor):
                futures = [pool.submit(one, job) for job in jobs]
                wait(futures)
        errors = [error for future in futures if (error := future.exception())]
        unexplained = [error for error in errors if not isinstance(error, EXPLAINED)]
        if unexplained:
            log.error("the first failure:", exc_info=unexplained[0])
        raise_failures(errors, len(jobs))
        return [future.result() for future in futures]

    return run


def until_full(executor: Executor) -> Serve:
    """``executor.run``, until there is no place to write to: what was computed after would be
    lost, so later jobs fail at once."""
    full: list[OSError] = []

    def run(work: Work, job: Any) -> Any:
        if full:
            raise full[0]
        try:
            return executor.run(work, job)
        except OSError as error:
            if error.errno in NO_SPACE:
                full.append(error)
            raise

    return run


def rank_runner(device: str) -> Runner:
    """A runner for jobs that all processes of torchrun do together; the first one tells of it.

    Nothing is tried again: a process that failed has left the others, and torchrun ends them.
    """
    if is_first():
        return local_runner(InProcess(device), retries=0)
    return lambda work, jobs, description: [work(job, device, lambda _: None) for job in jobs]


@contextlib.contextmanager
def stopping(executor: Executor) -> Iterator[None]:
    """Whatever ends this block early (Ctrl-C, SIGTERM) abandons the jobs that still run."""
    try:
        yield
    except BaseException:
        executor.stop()
        raise


def raise_failures(errors: Sequence[BaseException], jobs: int) -> None:
    """Nothing where nothing failed; otherwise one error that tells how many and why."""
    if not errors:
        return
    if isinstance(errors[0], UserError):
        raise errors[0]
    raise JobsFailed(
        f"{len(errors)} of {jobs} jobs failed; the first: {errors[0]}. "
        "The others are complete: run the same command again to make what is missing"
    ) from errors[0]


@contextlib.contextmanager
def progress_bar(
    executor: Executor,
    jobs: Sequence[Job],
    description: str,
    show: Callable[[float], None] | None = None,
) -> Iterator[Callable[[Job], None]]:
    """A bar over the images of ``jobs``: images/s and time left. Yields what marks a job done.

    ``show`` is told the share that is done, again and again, from a thread of its own.
    """
    completed, stop = 0, threading.Event()
    lock = threading.Lock()

    def finished(job: Job) -> None:
        nonlocal completed
        with lock:
            completed += job.images

    total = sum(job.images for job in jobs)
    interval = 0.5 if sys.stderr.isatty() else 10.0  # a log file wants fewer lines
    with tqdm(
        total=total, desc=description, unit="img", smoothing=0.05, mininterval=interval
    ) as bar:

        def refresh() -> None:
            seen = min(completed + executor.in_flight(), total)
            bar.update(round(seen) - bar.n)
            if show is not None:
                show(seen / total)

        def watch() -> None:
            while not stop.wait(0.5):
                refresh()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield finished
        finally:
            stop.set()
            watcher.join()
            refresh()


def _attempt(serve: Serve, work: Work, job: Any, retries: int) -> Any:
    for attempt in range(retries + 1):
        try:
            return serve(work, job)
        except LASTING:
            raise
        except Exception as error:
            if attempt == retries:
                raise
            log.warning("%s failed and is tried again: %s", job, error)
    raise AssertionError
