"""Runners: many jobs through an executor, in parallel, with retries and a progress bar."""

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
from pipeline.execution.choice import open_executor
from pipeline.execution.executor import (
    Executor,
    InProcess,
    Stopped,
    Work,
    WorkerDied,
)
from pipeline.execution.torchrun import is_first


class Job(Protocol):
    """A job with a name, ``str(job)``, and a number of images."""

    @property
    def images(self) -> int:
        """Number of images that the job processes."""


log = logging.getLogger(__name__)
# Errors that a retry would meet again.
LASTING = (UserError, Stopped, OSError, FloatingPointError)
# Errors whose message is enough. Any other error is a bug, and its traceback is logged.
EXPLAINED = (*LASTING, WorkerDied)
SCALED = 10_000  # Images from which the bar shows 384k instead of 384000: it then fits a line.
NO_SPACE = (*DISK_FULL, errno.EROFS)
Runner = Callable[[Work, Sequence[Any], str], list[Any]]
"""``runner(work, jobs, description)`` returns all results; it raises if a job failed finally."""
Serve = Callable[[Work, Any], Any]
"""``serve(work, job)`` returns the result of one job."""


class JobsFailed(RuntimeError):
    """Some jobs failed after all retries. The others are complete."""


@contextlib.contextmanager
def open_runner(
    config: Config,
    threads: int = 1,
    rank_device: str | None = None,
    outputs: Sequence[str] = ("dataset",),
) -> Iterator[Runner]:
    """Open a runner on the devices that ``config.execution`` names.

    Args:
        config: The configuration.
        threads: CPU threads that each job uses.
        rank_device: Device of this process where torchrun started it; None elsewhere.
        outputs: Fields of ``paths`` whose files the jobs read and write. Workers of a Dask cluster
            must see these directories.

    Raises:
        UserError: The devices or the Dask cluster cannot be used.

    Example::

        with open_runner(config, config.synthesis.threads) as run:
            results = run(make_shard, jobs, "round 0")
    """
    if rank_device is not None:
        yield rank_runner(rank_device)
        return
    with open_executor(config, threads, outputs) as executor:
        yield local_runner(executor, config.execution.retries)


def local_runner(executor: Executor, retries: int) -> Runner:
    """Create a runner that hands jobs to an executor from threads of this process.

    Args:
        executor: Where the jobs run.
        retries: How often a job that failed is tried again.
    """

    def run(work: Work, jobs: Sequence[Any], description: str) -> list[Any]:
        serve = until_full(executor)
        with progress_bar(executor, jobs, description) as count_finished:

            def run_one(job: Any) -> Any:
                result = _attempt(serve, work, job, retries)
                count_finished(job)
                return result

            with ThreadPoolExecutor(executor.workers) as pool, stopping(executor):
                futures = [pool.submit(run_one, job) for job in jobs]
                wait(futures)
        errors = [error for future in futures if (error := future.exception())]
        unexplained = [error for error in errors if not isinstance(error, EXPLAINED)]
        if unexplained:
            log.error("the first unexpected error was:", exc_info=unexplained[0])
        raise_failures(errors, len(jobs))
        return [future.result() for future in futures]

    return run


def until_full(executor: Executor) -> Serve:
    """Wrap ``executor.run`` so that jobs fail at once after the disk was found full.

    Results that cannot be written would be lost, and computing them takes long.
    """
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
    """Create a runner for jobs that all processes of torchrun do together.

    Only the first process shows progress. No job is tried again, because torchrun ends all
    processes when one of them fails.

    Args:
        device: Device of this process.
    """
    if is_first():
        return local_runner(InProcess(device), retries=0)
    return lambda work, jobs, description: [work(job, device, lambda _: None) for job in jobs]


@contextlib.contextmanager
def stopping(executor: Executor) -> Iterator[None]:
    """Abandon the running jobs if the ``with`` statement ends early, as by Ctrl-C or SIGTERM."""
    try:
        yield
    except BaseException:
        executor.stop()
        raise


def raise_failures(errors: Sequence[BaseException], jobs: int) -> None:
    """Raise one error for all failed jobs.

    Args:
        errors: Errors of the jobs that failed.
        jobs: Number of all jobs.

    Raises:
        UserError: The first error is one.
        JobsFailed: Any other job failed. The message says how many, and the first error.
    """
    if not errors:
        return
    if isinstance(errors[0], UserError):
        raise errors[0]
    others = "The other jobs are complete: r" if len(errors) < jobs else "R"
    raise JobsFailed(
        f"{len(errors)} of {jobs} jobs failed; the first: {errors[0]}. "
        f"{others}un the same command again to do the failed ones"
    ) from errors[0]


@contextlib.contextmanager
def progress_bar(
    executor: Executor,
    jobs: Sequence[Job],
    description: str,
    show: Callable[[float], None] | None = None,
) -> Iterator[Callable[[Job], None]]:
    """Show a progress bar over the images of all jobs: speed, remaining time and loss.

    It takes one line of a terminal. Where the standard error is no terminal, nothing is shown.

    Args:
        executor: Reports the progress of the running jobs.
        jobs: All jobs.
        description: Text before the bar.
        show: Called twice a second, from another thread, with the finished share in [0, 1].

    Yields:
        A function to call with each finished job.
    """
    completed, stop = 0, threading.Event()
    lock = threading.Lock()

    def count_finished(job: Job) -> None:
        nonlocal completed
        with lock:
            completed += job.images

    total = sum(job.images for job in jobs)
    unit = getattr(jobs[0], "unit", "img") if jobs else "img"
    starts = "compiling" if any(getattr(job, "compiles", False) for job in jobs) else "starting"
    with tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=total >= SCALED,
        smoothing=0.05,
        mininterval=0.5,
        dynamic_ncols=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        bar.set_postfix_str(starts)

        def refresh() -> None:
            done = min(completed + executor.in_flight(), total)
            if done == 0:
                bar.refresh()  # the clock goes on while nothing moves
            else:
                loss = executor.loss()
                bar.set_postfix_str("" if loss is None else f"loss {loss:.3g}", refresh=False)
            bar.update(round(done) - bar.n)
            if show is not None:
                show(done / total)

        def watch() -> None:
            while not stop.wait(0.5):
                refresh()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield count_finished
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
            log.warning("%s failed and will be tried again: %s", job, error)
    raise AssertionError
