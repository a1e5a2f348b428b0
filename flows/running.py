"""Run work as Prefect flow runs, and jobs as Prefect task runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task

from pipeline.config.schema import Config
from pipeline.errors import first_line
from pipeline.execution.executor import Executor, Work
from pipeline.execution.runner import (
    LASTING,
    Runner,
    local_runner,
    progress_bar,
    raise_failures,
    stopping,
    until_full,
)
from pipeline.quantities import counted

log = logging.getLogger(__name__)
LOGGED = 10  # Percent between two lines of progress in the Logs tab.
Result = TypeVar("Result")


def job_runner(executor: Executor, retries: int) -> Runner:
    """The runner of a flow's jobs: one task run for each, or none outside of a flow run."""
    if FlowRunContext.get() is None:
        return local_runner(executor, retries)
    return prefect_runner(executor, retries)


def prefect_runner(executor: Executor, retries: int) -> Runner:
    """A runner (see :mod:`pipeline.execution.runner`) that makes each job a Prefect task run.

    A failed job does not stop the others. Tasks have no parameters, so that a job's data never
    passes through Prefect's API.

    Args:
        executor: Where the jobs run. Prefect only runs threads that wait for it.
        retries: How often a failed job is tried again.
    """

    def run(work: Work, jobs: Sequence[Any], description: str) -> list[Any]:
        progress, serve = _Progress(description, len(jobs)), until_full(executor)
        with (
            progress_bar(executor, jobs, description, progress.show) as finished,
            _threads(executor.workers) as threads,
        ):

            def as_task(job: Any) -> Task[[], Any]:
                @task(
                    name=description,
                    task_run_name=str(job),
                    retries=retries,
                    retry_condition_fn=_is_worth_retrying,
                    cache_policy=NO_CACHE,
                    persist_result=False,
                )
                def one() -> Any:
                    result = serve(work, job)
                    finished(job)
                    get_run_logger().info("%s is complete", job)
                    return result

                return one

            with stopping(executor):
                futures = [threads.submit(as_task(job), {}) for job in jobs]
                wait(list[PrefectFuture[Any]](futures))
        states = [future.state for future in futures]
        failed = [state for state in states if not state.is_completed()]
        raise_failures([_error(state) for state in failed], len(jobs))
        return [future.result() for future in futures]

    return run


def run_name(flow: str, config: Config) -> str:
    """The name of a run: the flow, the teacher and the size of the dataset."""
    origin, _, model = config.teacher.source.rpartition(":")
    origin = Path(origin).stem if origin.endswith(".py") else origin.rpartition(".")[2]
    teacher, size = f"{origin}:{model.rpartition('/')[2]}", config.teacher.input
    return f"{flow} {teacher}, {counted(config.images, 'image')} of {size.height}x{size.width}"


def run_as_flow(
    name: str, work: Callable[[], Result], parameters: Mapping[str, Any], config: Config
) -> Result:
    """Run ``work`` as a flow run, or as a sub-flow where a flow is already running.

    ``work`` holds the loaded parameters and teacher, so nothing is read again and neither passes
    through Prefect's API.

    Args:
        name: The name of the flow.
        work: What the flow does.
        parameters: The parameters ``params`` and ``overrides`` that Prefect shows for the run.
        config: All parameters, for the name of the run.
    """

    if not _Server.used:
        return work()
    began = False

    @flow(name=name, flow_run_name=lambda: run_name(name, config), persist_result=False)
    def shown(params: str, overrides: dict[str, Any] | None) -> Result:
        nonlocal began
        began = True
        return work()

    try:
        result: Result = shown(**parameters)
    except Exception as error:
        if began or FlowRunContext.get() is not None:
            raise
        log.warning(
            "Prefect's server does not answer (%s): the same work goes on without a record in "
            "Prefect",
            first_line(error),
        )
        return run_without_record(work)
    return result


def run_without_record(work: Callable[[], Result]) -> Result:
    """Run ``work``, and all flows inside it, as plain functions. No server is needed."""
    _Server.used = False
    try:
        return work()
    finally:
        _Server.used = True


class _Server:
    """Whether flows run as flow runs of a Prefect server."""

    used = True


def _threads(workers: int) -> ThreadPoolTaskRunner[Any]:
    return ThreadPoolTaskRunner(max_workers=workers)


def publish(send: Callable[[], object]) -> object:
    """Call ``send`` inside a flow run. If it fails, warn: an artifact must not fail finished work.

    Returns:
        The result of ``send``; None where it failed, or outside of a flow run.
    """
    return None if FlowRunContext.get() is None else _send(send)


def _send(send: Callable[[], object]) -> object:
    try:
        return send()
    except Exception as error:
        log.warning("Prefect's server refused an artifact: %s", error)
        return None


class _Progress:
    """The progress of a run in Prefect's UI: an artifact and lines of the Logs tab."""

    def __init__(self, description: str, jobs: int) -> None:
        self._percent = self._logged = 0
        self._description = description
        self._log = get_run_logger()  # here: the thread that calls show() belongs to no flow run
        key = re.sub(r"[^a-z0-9]+", "-", description.lower()).strip("-")
        text = f"{description}: {counted(jobs, 'job')}"
        self._log.info("%s", text)
        self._artifact = publish(
            lambda: create_progress_artifact(progress=0.0, key=key, description=text)
        )

    def show(self, share: float) -> None:
        """Update the artifact at each whole percent, and log each ``LOGGED`` percent."""
        percent, artifact = int(100 * share), self._artifact
        if percent // LOGGED > self._logged:
            self._logged = percent // LOGGED
            self._log.info("%s: %d %%", self._description, percent)
        if percent != self._percent and isinstance(artifact, UUID):  # None: the server refused it
            self._percent = percent
            self._artifact = _send(
                lambda: update_progress_artifact(artifact, progress=float(percent))
            )


def _is_worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Deterministic errors, such as bad input, and stopped runs are not retried."""
    error = _error(state)
    if isinstance(error, LASTING):
        return False
    log.warning("%s failed and will be tried again: %s", run.name, error)
    return True


def _error(state: State[Any]) -> BaseException:
    result = state.result(raise_on_failure=False)
    return result if isinstance(result, BaseException) else RuntimeError(str(state.message))
