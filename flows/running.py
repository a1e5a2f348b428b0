"""Run work as Prefect flow runs, and jobs as Prefect task runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task

from pipeline.execution.executor import Executor, Work
from pipeline.execution.runner import (
    LASTING,
    Runner,
    progress_bar,
    raise_failures,
    stopping,
    until_full,
)

log = logging.getLogger(__name__)
Result = TypeVar("Result")


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


def run_as_flow(name: str, work: Callable[[], Result], parameters: Mapping[str, Any]) -> Result:
    """Run ``work`` as a flow run, or as a sub-flow where a flow is already running.

    ``work`` holds the loaded parameters and teacher, so nothing is read again and neither passes
    through Prefect's API.

    Args:
        name: The name of the flow.
        work: What the flow does.
        parameters: The parameters ``params`` and ``overrides`` that Prefect shows for the run.
    """

    @flow(name=name, flow_run_name=f"{name} {{params}}", persist_result=False)
    def shown(params: str, overrides: dict[str, Any] | None) -> Result:
        return work()

    result: Result = shown(**parameters)
    return result


def _threads(workers: int) -> ThreadPoolTaskRunner[Any]:
    return ThreadPoolTaskRunner(max_workers=workers)


def publish(send: Callable[[], object]) -> object:
    """Call ``send``. If it fails, warn and return None: an artifact must not fail finished work."""
    try:
        return send()
    except Exception as error:
        log.warning("Prefect's server refused an artifact: %s", error)
        return None


class _Progress:
    """The progress artifact of a run in Prefect's UI, updated at each whole percent."""

    def __init__(self, description: str, jobs: int) -> None:
        self._percent = 0
        key = re.sub(r"[^a-z0-9]+", "-", description.lower()).strip("-")
        text = f"{description}: {jobs} jobs"
        self._artifact = publish(
            lambda: create_progress_artifact(progress=0.0, key=key, description=text)
        )

    def show(self, share: float) -> None:
        percent, artifact = int(100 * share), self._artifact
        if percent != self._percent and isinstance(artifact, UUID):  # None: the server refused it
            self._percent = percent
            self._artifact = publish(
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
