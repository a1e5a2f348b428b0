"""One student trained by two processes, as torchrun starts them, against one process."""

from __future__ import annotations

import copy
import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.distillation import shared_batchnorm
from pipeline.distillation.job import DistillJob, student_problem
from pipeline.distillation.shared_batchnorm import share_batchnorm
from pipeline.distillation.train_student import distill
from pipeline.errors import UserError
from pipeline.execution import torchrun
from pipeline.execution.torchrun import Share
from pipeline.stages import distillation_check as check_module
from pipeline.stages.distillation_check import check_distillation
from pipeline.stages.final_students import student_jobs
from pipeline.storage import digest_file
from tests.conftest import Params, changed, load, tree, write_params

RUN = {
    "distillation.steps": 50,
    "distillation.batch_size": 8,
    "distillation.checkpoint_every": 10,
    "distillation.cutout": 2,
    "distillation.adversarial": 0.3,
    "distillation.ema": 0.9,
    "distillation.optimizer": "sgd",  # Muon, in bfloat16, makes the last bits of sums larger
}


@pytest.fixture(scope="module")
def run(finished: Params, tmp_path_factory: pytest.TempPathFactory) -> Params:
    root = tmp_path_factory.mktemp("ranks")
    paths = {f"paths.{name}": str(root / name) for name in ("students", "reports")}
    return changed(finished, {**RUN, **paths})


@pytest.fixture(scope="module")
def by_two(run: Params) -> Iterator[Path]:
    """The directory of a student that two processes trained, torchrun's own way."""
    directory = Path(run["paths"]["students"])
    distill_by_two(run)
    yield directory


def distill_by_two(params: Params) -> None:
    path = write_params(params, Path(params["paths"]["students"]).parent / "params.json")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*torchrun, "-m", "pipeline", "distill", "--params", str(path)], check=True)


def start(params: Path) -> list[subprocess.Popen[bytes]]:
    """Two processes with the environment that torchrun gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "pipeline", "distill", "--params", str(params)]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]


def job_of(params: Params) -> DistillJob:
    (job,) = student_jobs(*load(params))
    return job


def losses(directory: Path) -> list[float]:
    with (directory / "student-0.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_processes_compute_what_one_does(run: Params, by_two: Path, tmp_path: Path) -> None:
    assert list(tree(by_two)) == [
        "dreamshard.json",
        "student-0.csv",
        "student-0.json",
        "student-0.safetensors",
    ]
    alone = job_of(changed(run, {"paths.students": str(tmp_path)}))
    distill(alone, "cpu", lambda images: None)
    expected, found = losses(tmp_path), losses(by_two)
    assert len(expected) == 50 and sum(expected[-10:]) < 0.8 * sum(expected[:10])
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    ours, theirs = load_file(alone.output), load_file(by_two / alone.output.name)
    assert list(ours) == list(theirs)
    torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=1e-3)
    assert student_problem(by_two / alone.output.name) is None


@pytest.mark.slow
def test_two_processes_average_gradients_before_muon(run: Params, tmp_path: Path) -> None:
    muon = {"distillation.optimizer": "muon", "distillation.steps": 3}
    two, one = (
        changed(run, {**muon, "paths.students": str(tmp_path / name / "students")})
        for name in ("two", "one")
    )
    (tmp_path / "two").mkdir()
    distill_by_two(two)
    distill(job_of(one), "cpu", lambda images: None)
    expected, found = (losses(Path(params["paths"]["students"])) for params in (one, two))
    assert len(expected) == 3
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_two_killed_processes_go_on_to_the_same_bytes(
    run: Params, by_two: Path, tmp_path: Path
) -> None:
    often = {"paths.students": str(tmp_path / "cut"), "distillation.checkpoint_every": 2}
    job = job_of(changed(run, often))
    params = write_params(changed(run, often), tmp_path / "params.json")
    processes = start(params)
    try:
        while not job.checkpoint.exists():
            assert all(process.poll() is None for process in processes)
            time.sleep(0.001)
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
    assert not job.output.exists()
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / job.checkpoint.name).write_bytes(job.checkpoint.read_bytes())
    for process in start(params):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    for file in by_two.iterdir():
        assert digest_file(file) == digest_file(tmp_path / "cut" / file.name), file.name
    # As many processes as there are may take it over: here one.
    told: list[float] = []
    distill(job_of(changed(run, {"paths.students": str(alone)})), "cpu", told.append)
    assert told[0] >= 16 and sum(told) == 400
    assert losses(alone) == pytest.approx(losses(by_two), abs=1e-4)


@pytest.mark.parametrize(("processes", "batch", "multiple"), [(2, 10, 8), (3, 16, 12)])
def test_a_batch_that_cannot_be_shared(
    finished: Params, processes: int, batch: int, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, teacher = load(changed(finished, {"distillation.batch_size": batch}))
    check_distillation(config, teacher)
    monkeypatch.setattr(check_module, "own_share", lambda: Share(0, processes))
    with pytest.raises(UserError, match=f"batch_size is {batch}.* a multiple of {multiple} "):
        check_distillation(config, teacher)


def test_a_process_without_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("auto", "cuda"):
        with (
            pytest.raises(UserError, match="GPU 3, but this machine has 2"),
            torchrun.joined(device),
        ):
            pass


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process only."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_a_shared_batchnorm_compiles_to_one_graph(alone: None) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    shared = copy.deepcopy(plain)
    for index in (1, 3):
        shared[index] = shared_batchnorm._shared(shared[index])
    images = torch.rand(4, 2, 6, 6)
    torch._dynamo.reset()
    compiled = torch.compile(shared, backend="aot_eager", fullgraph=True)
    expected, found = plain(images), compiled(images)
    assert torch.allclose(found, expected, atol=1e-5)
    for output in (expected, found):
        output.square().sum().backward()
    for ours, theirs in zip(shared.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)
    for ours, theirs in zip(shared.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_batchnorm_of_another_kind_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(nn.BatchNorm2d):
        pass

    network = nn.Sequential(nn.Conv2d(1, 2, 3), Other(2))
    assert share_batchnorm(network) is network
    monkeypatch.setattr(shared_batchnorm, "own_share", lambda: Share(0, 2))
    with pytest.raises(UserError, match="a Other, which several processes cannot share"):
        share_batchnorm(network)
