"""What only the executor of long-lived processes can get wrong."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.execution import choice
from pipeline.execution.choice import choose_executor, worker_environments
from pipeline.execution.executor import Executor, InProcess, PerDevice, Stopped
from pipeline.execution.runner import JobsFailed, local_runner
from pipeline.params import parse_params
from tests.conftest import Params, changed


@dataclass
class Job:
    images: int = 1


def test_stop_ends_its_own_workers_and_nobody_elses() -> None:
    """Once while they work, once while they still start."""
    bystander = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    bystander.start()
    for wait_for_start in (True, False):
        executor, stopped = PerDevice([{}, {}], "cpu"), []

        def run(executor: PerDevice = executor, stopped: list[Stopped] = stopped) -> None:
            with pytest.raises(Stopped) as caught:
                executor.run(nap, 600)
            stopped.append(caught.value)

        if wait_for_start:
            assert executor.run(nap, 0) == "cpu"
        threads = [threading.Thread(target=run) for _ in range(executor.workers)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        executor.stop()
        for thread in threads:
            thread.join(60)
        assert len(stopped) == 2
        with pytest.raises(Stopped):
            executor.run(nap, 0)
        executor.close()
    assert bystander.is_alive()
    bystander.kill()
    bystander.join()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_nothing_is_begun_once_a_disk_is_full(number: int) -> None:
    begun = []

    def work(job: Job, device: str, report: Callable[[float], None]) -> None:
        begun.append(job)
        raise OSError(number, "as it is")

    with pytest.raises(JobsFailed, match=r"3 of 3 jobs failed; the first: \[Errno"):
        local_runner(InProcess("cpu"), retries=2)(work, [Job()] * 3, "naps")
    assert len(begun) == (1 if number == errno.ENOSPC else 3)


def choose(params: Params, device: str, workers: int | None) -> Executor:
    named = {"execution.device": device, "execution.workers": workers}
    return choose_executor(parse_params(changed(params, named)), 1, ("dataset",))


@pytest.mark.parametrize(("workers", "given"), [(None, ["0", "4", "7"]), (2, ["0", "4"])])
def test_each_gpu_has_a_worker(
    tiny: Params, monkeypatch: pytest.MonkeyPatch, workers: int | None, given: list[str]
) -> None:
    made = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,4,7")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(choice, "PerDevice", lambda *arguments: made.append(arguments))
    choose(tiny, "auto", workers)
    assert made == [([{"CUDA_VISIBLE_DEVICES": name} for name in given], "cuda")]


@pytest.mark.parametrize(("workers", "threads", "given"), [(None, 2, 3), (None, 9, 1), (4, 9, 4)])
def test_as_many_workers_as_the_cores_hold(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, threads: int, given: int
) -> None:
    monkeypatch.setattr(choice, "_cores", lambda: 6)
    assert worker_environments("cpu", workers, threads) == [{}] * given


def test_one_worker_is_this_process(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        assert isinstance(choose(tiny, "cuda", 1), InProcess)


@pytest.mark.parametrize("hidden", ["", "-1", "0"])
def test_no_gpu_is_named_where_none_can_be_used(
    tiny: Params, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    executor = choose(tiny, "auto", 1)
    assert isinstance(executor, InProcess)
    assert executor.run(nap, 0) == "cpu"
    with pytest.raises(UserError, match="has no CUDA device"):
        choose(tiny, "cuda", None)


def test_a_worker_has_its_environment() -> None:
    executor = PerDevice([{"CUDA_VISIBLE_DEVICES": "7"}], "cpu")
    assert executor.run(environment, "CUDA_VISIBLE_DEVICES") == "7"
    executor.close()


@pytest.mark.parametrize("error", [ZeroDivisionError("odd"), FloatingPointError("lower it")])
def test_only_an_error_that_does_not_explain_itself_has_a_traceback(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = []

    def work(job: Job, device: str, report: Callable[[float], None]) -> None:
        attempts.append(job)
        raise error

    with pytest.raises(JobsFailed, match=f"2 of 2 jobs failed; the first: {error}. Run"):
        local_runner(InProcess("cpu"), retries=1)(work, [Job(), Job()], "odd jobs")
    expected = isinstance(error, ZeroDivisionError)
    assert caplog.text.count("Traceback") == expected
    assert len(attempts) == (4 if expected else 2)  # a loss comes out the same again
    assert ("in work" in caplog.text) == expected


def environment(job: str, device: str, report: Callable[[float], None]) -> str:
    return os.environ[job]


def nap(job: float, device: str, report: Callable[[float], None]) -> str:
    time.sleep(job)
    return device


def test_a_script_without_a_guard_may_start_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pipeline.execution.executor import PerDevice\n"
        "from tests.execution.test_executor import divide\n"
        "print('started')\n"
        "executor = PerDevice([{}, {}], 'cpu')\n"
        "print(executor.run(divide, (7, 2)))\n"
        "executor.close()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == ["started", "(3, 1)"], done.stderr[-500:]


def divide(job: tuple[int, int], device: str, report: Callable[[float], None]) -> tuple[int, int]:
    return divmod(*job)
