"""The files in ``deploy/`` that split a dataset into ranges, run as their systems run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import Params, changed, dataset, make, tree, write_params

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SLURM = DEPLOY / "slurm.sbatch"

SIZES = [(8, 3), (8, 8), (3, 8), (1280, 64), (100_001, 7), (1, 1)]  # shards, tasks


def job(name: str) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(DEPLOY / name)
    return found


def container(name: str) -> dict[str, Any]:
    (found,) = job(name)["spec"]["template"]["spec"]["containers"]
    return dict(found)


def slurm_task(index: int, shards: int, tasks: int, *more: str) -> tuple[list[str], dict[str, str]]:
    arguments = ["bash", str(SLURM), str(shards), str(tasks), *more]
    return arguments, {"SLURM_ARRAY_TASK_ID": str(index)}


def kubernetes_task(index: int, shards: int, tasks: int) -> tuple[list[str], dict[str, str]]:
    found = container("kubernetes.yaml")
    variables = {"SHARDS": str(shards), "TASKS": str(tasks), "JOB_COMPLETION_INDEX": str(index)}
    assert {entry["name"] for entry in found["env"]} == variables.keys() - {"JOB_COMPLETION_INDEX"}
    return [*found["command"], *found["args"]], variables


def commands_of(
    directory: Path, arguments: list[str], variables: dict[str, str]
) -> list[list[str]]:
    """What a task would run: ``python`` is a program that writes its arguments down."""
    log, python = directory / "log", directory / "python"
    log.write_text("")
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{log}"\n')
    python.chmod(0o755)
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(arguments, env={**os.environ, **variables, "PATH": path}, check=True)
    return [line.split() for line in log.read_text().splitlines()]


@pytest.mark.parametrize(("shards", "tasks"), SIZES)
@pytest.mark.parametrize("task", [slurm_task, kubernetes_task])
def test_the_tasks_make_every_shard_once(
    task: Any, shards: int, tasks: int, tmp_path: Path
) -> None:
    made: list[int] = []
    sizes = []
    for index in range(tasks):
        commands = commands_of(tmp_path, *task(index, shards, tasks))
        for command in commands:
            assert command[:4] == ["-m", "pipeline", "synthesize", "--shards"]
            first, end = map(int, command[4].split(":"))
            made += range(first, end)
        sizes.append(len(made) - sum(sizes))
    assert made == list(range(shards))
    assert max(sizes) - min(sizes) <= 1


def test_slurm_hands_the_options_on(tmp_path: Path) -> None:
    (command,) = commands_of(tmp_path, *slurm_task(1, 10, 2, "--params", "other.yaml"))
    assert command[3:] == ["--shards", "5:10", "--params", "other.yaml"]


def test_slurm_wants_its_numbers() -> None:
    done = subprocess.run(["bash", str(SLURM), "8"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "give the number of array tasks" in done.stderr


def test_the_kubernetes_jobs_fit_together() -> None:
    shards, finalize = job("kubernetes.yaml")["spec"], job("kubernetes-finalize.yaml")["spec"]
    main, last = container("kubernetes.yaml"), container("kubernetes-finalize.yaml")
    (tasks,) = (entry["value"] for entry in main["env"] if entry["name"] == "TASKS")
    assert shards["completionMode"] == "Indexed"
    assert int(tasks) == shards["completions"]
    assert main["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert main["image"] == last["image"]
    assert main["workingDir"] == last["workingDir"] == main["volumeMounts"][0]["mountPath"]
    for spec in (shards, finalize):
        pod = spec["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["restartPolicy"] == "Never"
        assert pod["volumes"] == shards["template"]["spec"]["volumes"]


def test_the_image_has_what_it_copies() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    assert set(copied) == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert "USER 1000" in lines


@pytest.mark.slow
def test_ranges_at_the_same_time_make_the_dataset(tiny: Params, tmp_path: Path) -> None:
    settings = changed(tiny, {"synthesis.shard_size": 4, "synthesis.batch_size": 4})
    direct = changed(settings, {"paths.dataset": str(tmp_path / "direct")})
    make(direct)
    params = write_params(settings, tmp_path / "params.yaml")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    tasks = []
    for index in (2, 0, 1):
        arguments, variables = slurm_task(index, 5, 3, "--params", str(params))
        tasks.append(subprocess.Popen(arguments, cwd=ROOT, env={**environment, **variables}))
    assert [task.wait(240) for task in tasks] == [0, 0, 0]
    last = [sys.executable, "-m", "pipeline", "synthesize", "--params", str(params)]
    subprocess.run(last, cwd=ROOT, env=environment, check=True, timeout=240)
    assert tree(dataset(settings)) == tree(dataset(direct))
