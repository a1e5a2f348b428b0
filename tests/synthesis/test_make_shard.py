from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.distillation.train_student import distill
from pipeline.errors import UserError
from pipeline.execution.runner import JobsFailed
from pipeline.local_files import temporary_name
from pipeline.stages import synthesize as synthesize_module
from pipeline.stages.final_students import student_jobs
from pipeline.synthesis.job import ShardJob
from pipeline.synthesis.make_shard import make_shard
from pipeline.synthesis.shard_states import missing_jobs
from tests.conftest import Params, changed, dataset, load, make, tree
from tests.synthesis.shards import WHOLE, files, shard_files, states, times


def test_the_files_of_a_finished_dataset(tiny: Params) -> None:
    assert make(tiny) == [0, 1]
    assert files(dataset(tiny)) == sorted([*WHOLE, *shard_files(0, 1)])


def test_a_second_run_makes_nothing(tiny: Params) -> None:
    make(tiny)
    before, written = tree(dataset(tiny)), times(dataset(tiny))
    assert make(tiny) == []
    assert tree(dataset(tiny)) == before
    assert times(dataset(tiny)) == written


@pytest.mark.parametrize("name", ["metadata/labels.csv", "README.md", "thesis.pdf"])
def test_a_directory_of_something_else_is_left_alone(tiny: Params, name: str) -> None:
    for file in (name, "train/000000.tar", "train/000007.tar"):
        (dataset(tiny) / file).parent.mkdir(parents=True, exist_ok=True)
        (dataset(tiny) / file).write_text("years of work")
    before = tree(dataset(tiny))
    with pytest.raises(UserError, match="holds other files"):
        make(tiny)
    assert tree(dataset(tiny)) == before


def test_a_first_run_that_was_killed_after_its_first_tar_goes_on(tiny: Params) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    for path in sorted(dataset(tiny).rglob("*")):
        if path.is_file() and path.name not in ("000000.tar", "dreamshard.json"):
            path.unlink()
    assert make(tiny) == [0, 1]
    assert tree(dataset(tiny)) == before


def test_a_licence_that_changed_and_changed_back_leaves_the_same_bytes(tiny: Params) -> None:
    named = changed(tiny, {"teacher.license": "mit"})
    make(named)
    before = tree(dataset(tiny))
    (dataset(tiny) / "train/000001.tar").unlink()
    assert make(changed(tiny, {"teacher.license": "apache-2.0"})) == [1]
    assert make(named) == []
    assert tree(dataset(tiny)) == before


def test_another_directory_gets_the_same_bytes(tiny: Params, tmp_path: Path) -> None:
    other = changed(tiny, {"paths.dataset": str(tmp_path / "deep" / "other")})
    make(tiny)
    make(other)
    assert tree(dataset(other)) == tree(dataset(tiny))


def test_another_home_of_the_teacher_gets_the_same_bytes(tiny: Params, tmp_path: Path) -> None:
    make(tiny)
    (tmp_path / "home").mkdir()
    for name in ("tinynet.py", "teacher.safetensors"):
        shutil.copy(tmp_path / name, tmp_path / "home" / name)
    moved = {
        "teacher.source": f"{tmp_path / 'home' / 'tinynet.py'}:classifier",
        "teacher.weights": str(tmp_path / "home" / "teacher.safetensors"),
    }
    assert make(changed(tiny, moved)) == []


def test_no_file_tells_where_it_was_made(competing: Params, tmp_path: Path) -> None:
    make(competing)
    for path in dataset(competing).rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_a_failed_shard_leaves_the_others_complete(
    tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = changed(tiny, {"synthesis.images": 30})
    make(three)
    again = changed(three, {"paths.dataset": str(tmp_path / "again")})
    real = make_shard

    def fragile(job: ShardJob, device: str, report: Any) -> Any:
        if job.number == 1:
            raise RuntimeError("out of luck")
        return real(job, device, report)

    with monkeypatch.context() as patch:
        patch.setattr(synthesize_module, "make_shard", fragile)
        with pytest.raises(
            JobsFailed, match=r"1 of 3 jobs failed; the first: out of luck\. The other"
        ):
            make(again)
    assert states(again) == {0: "complete", 1: "missing", 2: "complete"}
    assert files(tmp_path / "again") == sorted(["dreamshard.json", *shard_files(0, 2)])
    assert make(again) == [1]
    assert tree(tmp_path / "again") == tree(dataset(three))


def test_a_failed_shard_is_tried_again(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    real, attempts = make_shard, []

    def flaky(job: ShardJob, device: str, report: Any) -> Any:
        attempts.append(job.number)
        if attempts.count(1) == 1 and job.number == 1:
            raise RuntimeError("a bad moment")
        return real(job, device, report)

    monkeypatch.setattr(synthesize_module, "make_shard", flaky)
    assert make(changed(tiny, {"execution.retries": 1})) == [0, 1]
    assert attempts == [0, 1, 1]


def test_a_shard_is_not_made_again_when_only_the_answer_was_lost(
    tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stamps = make_shard, []

    def mute(job: ShardJob, device: str, report: Any) -> Any:
        made = real(job, device, report)
        tar = dataset(tiny) / "train" / f"{job.number:06d}.tar"
        stamps.append((tar.stat().st_ino, tar.stat().st_mtime_ns))
        if len(stamps) == 1:
            raise RuntimeError("died between the record and the answer")
        return made

    monkeypatch.setattr(synthesize_module, "make_shard", mute)
    assert make(changed(tiny, {"execution.retries": 1})) == [0, 1]
    assert len(stamps) == 3 and stamps[0] == stamps[1]


def test_a_crash_at_any_write_is_made_good(
    competing: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst case is a stale dataset: none of its files may count as a file of the new one."""
    few = {
        "synthesis.images": 4,
        "synthesis.shard_size": 2,
        "synthesis.iterations": 1,
        "adaptive.images": 2,
        "adaptive.training.steps": 3,
        "adaptive.training.batch_size": 2,
    }
    competing = changed(competing, few)
    make(changed(competing, {"synthesis.iterations": 0}))
    stale = shutil.copytree(dataset(competing), tmp_path / "stale")
    make(competing)
    finished = tree(dataset(competing))
    real, crashes = os.replace, 0
    while True:
        root = dataset(competing)
        shutil.rmtree(root)
        shutil.copytree(stale, root)
        writes = 0

        def failing(source: str, target: str) -> None:
            nonlocal writes
            writes += 1
            if writes > crashes:  # noqa: B023
                raise OSError("the disk is full")
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            try:
                make(competing)
            except (JobsFailed, OSError) as error:
                assert "the disk is full" in str(error)
            else:
                break
        assert not list(root.rglob("*.tmp"))
        now = tree(root)
        for record in (root / "metadata").glob("0*.json"):
            for name, facts in json.loads(record.read_bytes())["files"].items():
                assert facts["sha256"] == now[name]
        for number, state in states(competing).items():
            if state == "complete":
                assert all(now[name] == finished[name] for name in shard_files(number))
        make(competing)
        assert tree(root) == finished
        crashes += 1
    old = tree(stale)
    assert crashes >= sum(
        old.get(name) != digest for name, digest in finished.items()
    )  # each failed once


def test_a_first_run_that_power_ended_goes_on(competing: Params) -> None:
    """The disk holds the claim, the first tar and half of the first Parquet file, no marker."""
    make(competing)
    root = dataset(competing)
    before = tree(root)
    for path in [path for path in root.rglob("*") if path.is_file()]:
        if path.name not in ("000000.tar", "dreamshard.json"):
            path.unlink()
    (root / "metadata" / temporary_name("000000.parquet")).write_bytes(b"half")
    make(competing)
    assert tree(root) == before


def test_leftovers_of_a_killed_run_are_swept_up(competing: Params) -> None:
    make(competing)
    root = dataset(competing)
    before = tree(root)
    for name in ("train/000000.tar", "metadata/000001.json", "README.md", "students/1.safetensors"):
        path = root / name
        path.with_name(temporary_name(path.name)).write_bytes(b"half")
    make(competing)
    assert tree(root) == before


@pytest.mark.slow
def test_more_workers_make_the_same_bytes(competing: Params, tmp_path: Path) -> None:
    make(competing)
    two = changed(competing, {"execution.workers": 2, "paths.dataset": str(tmp_path / "two")})
    assert make(two) == [0, 1, 2]
    assert tree(tmp_path / "two") == tree(dataset(competing))


def test_jobs_compute_with_the_threads_they_are_to(made: Params) -> None:
    config, teacher = load(made)
    (student,) = student_jobs(config, teacher)
    torch.set_num_threads(2)
    try:
        distill(student, "cpu", lambda images: None)
        assert torch.get_num_threads() == 1
        (dataset(made) / "train/000001.tar").unlink()
        torch.set_num_threads(2)
        (shard,) = missing_jobs(config, teacher.digest, 0, None, range(2))
        make_shard(shard, "cpu", lambda images: None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
