"""The Dask executor against a real scheduler and worker processes of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from distributed import LocalCluster

import pipeline.execution.dask_cluster
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.execution.dask_cluster import DaskCluster
from pipeline.execution.executor import Stopped, WorkerDied
from pipeline.execution.runner import open_runner
from pipeline.params import parse_params
from pipeline.stages.synthesize import synthesize
from tests.conftest import Params, changed, dataset, load, make, tree, write_params
from tests.flows.test_deployment import MORTAL, ROOT, free_port, wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two workers of one thread, each a process that a nanny starts again when it dies."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)  # a new worker need not import PyTorch for it
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as running:
        yield running
    cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def executor(cluster: LocalCluster, tmp_path: Path) -> Iterator[DaskCluster]:
    connected = connect(cluster, tmp_path)
    yield connected
    connected.close()


def connect(cluster: LocalCluster, output: Path | str, device: str = "auto") -> DaskCluster:
    return DaskCluster(cluster.scheduler_address, device, None, {"paths.dataset": str(output)})


def on_dask(params: Params, cluster: LocalCluster, **changes: Any) -> Params:
    named = {f"execution.{name}": value for name, value in changes.items()}
    return changed(params, {"execution.dask_address": cluster.scheduler_address, **named})


def test_its_dataset_is_that_of_one_process(
    cluster: LocalCluster, tiny: Params, tmp_path: Path
) -> None:
    adaptive = changed(tiny, {"adaptive.rounds": 1, "synthesis.shard_size": 5})
    alone = changed(adaptive, {"paths.dataset": str(tmp_path / "alone")})
    assert make(alone) == make(on_dask(adaptive, cluster)) == [0, 1, 2, 3, 4, 5]
    assert tree(dataset(adaptive)) == tree(dataset(alone))


def test_the_command_line_takes_the_address(
    cluster: LocalCluster, made: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(dataset(made))
    (dataset(made) / "metadata/000001.json").unlink()
    params = write_params(made, tmp_path / "params.yaml")
    address = f"execution.dask_address={cluster.scheduler_address}"
    assert main(["synthesize", "--params", str(params), "--set", address]) == 0
    assert "made 1 shard " in capsys.readouterr().out
    assert tree(dataset(made)) == before


def test_a_dead_workers_job_is_done_by_another(
    cluster: LocalCluster, tiny: Params, tmp_path: Path
) -> None:
    (tmp_path / "mortal.py").write_text(MORTAL)
    grave = tmp_path / "grave"
    doomed = changed(
        on_dask(tiny, cluster),
        {
            "teacher.source": f"{tmp_path / 'mortal.py'}:mortal",
            "teacher.arguments": {"grave": str(grave)},
        },
    )
    assert make(doomed) == [0, 1]
    assert grave.exists()
    undisturbed = changed(
        doomed, {"execution.dask_address": None, "paths.dataset": str(tmp_path / "undisturbed")}
    )
    make(undisturbed)
    assert tree(dataset(doomed)) == tree(dataset(undisturbed))


def test_a_job_that_kills_its_workers_is_left_to_the_retries(
    cluster: LocalCluster, executor: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(WorkerDied, match="the Dask cluster lost"):
        executor.run(die_once, tmp_path / "grave")
    assert executor.run(die_once, tmp_path / "grave") == "alive"


@pytest.mark.parametrize("end", [DaskCluster.stop, DaskCluster.close], ids=["stopped", "gone"])
def test_a_worker_abandons_a_job_that_nobody_waits_for(
    cluster: LocalCluster, tmp_path: Path, end: Callable[[DaskCluster], None]
) -> None:
    executor, errors = connect(cluster, tmp_path), []

    def run() -> None:
        try:
            executor.run(dawdle, tmp_path)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: executor.in_flight() >= 1)  # it also says how far it is
    end(executor)
    thread.join(10)
    wait_until((tmp_path / "abandoned").exists)
    assert len(errors) == 1
    if end is DaskCluster.stop:
        assert isinstance(errors[0], Stopped)
        with pytest.raises(Stopped):
            executor.run(dawdle, tmp_path)
    executor.close()


def test_errors_keep_their_type(executor: DaskCluster) -> None:
    with pytest.raises(FileNotFoundError, match=r"there\.tar"):
        executor.run(fail, FileNotFoundError(2, "No such file", "there.tar"))
    with pytest.raises(FloatingPointError, match="the loss"):
        executor.run(fail, FloatingPointError("the loss is nan"))
    with pytest.raises(UserError, match=r"^set it \(on the Dask worker tcp://.*\)$"):
        executor.run(fail, UserError("set it"))
    assert executor.in_flight() == 0


def test_an_address_where_no_scheduler_answers(
    tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pipeline.execution.dask_cluster.CONNECT < 9
    monkeypatch.setattr("pipeline.execution.dask_cluster.CONNECT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = (free_port(), silent.getsockname()[1])
        for address in (*(f"tcp://127.0.0.1:{port}" for port in ports), "nonsense://here"):
            with (
                pytest.raises(UserError, match=rf"^execution.dask_address is {address}, and no "),
                open_runner(parse_params(changed(tiny, {"execution.dask_address": address}))),
            ):
                raise AssertionError
    assert not dataset(tiny).exists()


def test_the_extra_is_missing(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pipeline.execution.dask_cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)
    config = parse_params(changed(tiny, {"execution.dask_address": "tcp://127.0.0.1:1"}))
    with pytest.raises(UserError, match=r"needs the extra `dask`"), open_runner(config):
        raise AssertionError


def test_a_cluster_without_workers_and_then_without_a_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.execution.dask_cluster.CONNECT", 1.0)
    errors: list[Exception] = []

    def run() -> None:
        for _ in range(3):
            try:
                waiting.run(fail, ValueError("it ran"))
            except Exception as error:
                errors.append(error)

    with LocalCluster(n_workers=0, dashboard_address=":0") as empty:
        with pytest.raises(UserError, match="has no workers"):
            connect(empty, tmp_path)
        waiting = DaskCluster(empty.scheduler_address, "auto", 3, {"paths.dataset": str(tmp_path)})
        assert waiting.workers == 3
        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: len(empty.scheduler.tasks) == 1)
    thread.join(30)
    assert isinstance(errors[0], WorkerDied)
    assert isinstance(errors[2], ConnectionError)
    waiting.close()


def test_a_worker_with_other_code_is_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline")
    with (tmp_path / "pipeline/dataset/plan.py").open("a") as file:
        file.write("\nKEY_DIGITS = 10\n")
    with (
        another_worker(cluster, tmp_path),
        pytest.raises(UserError, match="runs another version of dreamshard"),
    ):
        connect(cluster, tmp_path)


def test_a_worker_with_several_threads_is_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    with (
        another_worker(cluster, ROOT, "--nthreads", "2"),
        pytest.raises(UserError, match="has 2 threads, but each job needs a process"),
    ):
        connect(cluster, tmp_path)


def test_a_worker_without_what_the_run_needs_is_refused(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    software = pipeline.execution.dask_cluster._software()
    monkeypatch.setattr(
        "pipeline.execution.dask_cluster._software", lambda: {**software, "torch": "1.0"}
    )
    with pytest.raises(UserError, match="runs another version of torch"):
        connect(cluster, tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has no CUDA device"):
        connect(cluster, tmp_path, "cuda")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"does not see what this run writes to paths\.students"):
        places = {"paths.dataset": str(ROOT), "paths.students": "students"}
        DaskCluster(cluster.scheduler_address, "auto", None, places).close()
    with pytest.raises(UserError, match=r"does not see what this run writes to paths\.dataset"):
        connect(cluster, "dataset")
    assert not list(tmp_path.iterdir())


def test_a_worker_that_comes_later_is_refused_too(executor: DaskCluster) -> None:
    executor._software = {**executor._software, "torch": "1.0"}
    with pytest.raises(UserError, match=r"^the Dask worker tcp://.* another version of torch"):
        executor.run(fail, AssertionError("it ran"))


def test_a_teacher_that_the_workers_do_not_see(
    cluster: LocalCluster, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = changed(on_dask(tiny, cluster), {"teacher.weights": "teacher.safetensors"})
    config, teacher = load(params)
    with (
        open_runner(config) as run,
        pytest.raises(
            UserError, match=r"^teacher.weights: there is no file .* \(on the Dask worker"
        ),
    ):
        synthesize(config, teacher, run)


@contextlib.contextmanager
def another_worker(cluster: LocalCluster, home: Path, *options: str) -> Iterator[None]:
    """One more worker, of the ``pipeline`` package in ``home``; gone with the block."""
    workers = len(cluster.scheduler.workers)
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address),
            *("--no-nanny", "--no-dashboard", *(options or ("--nthreads", "1"))),
        ],
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: len(cluster.scheduler.workers) == workers + 1)
        yield
    finally:
        worker.kill()
        worker.wait()
        wait_until(lambda: len(cluster.scheduler.workers) == workers)


# What the workers run here.


def dawdle(job: Path, device: str, report: Callable[[float], None]) -> None:
    try:
        for _ in range(6000):
            time.sleep(0.01)
            report(0.01)
    except Stopped:
        (job / "abandoned").touch()
        raise


def fail(job: Exception, device: str, report: Callable[[float], None]) -> None:
    raise job


def die_once(job: Path, device: str, report: Callable[[float], None]) -> str:
    if job.exists():
        return "alive"
    job.touch()
    os._exit(137)
