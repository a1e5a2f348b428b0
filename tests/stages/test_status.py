"""What status tells: of shards at work, of failed ones, and how long it will take."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.dataset import run_markers
from pipeline.dataset.run_markers import DEAD, REFRESH, marked, read_markers
from pipeline.errors import UserError
from pipeline.execution.executor import Stopped
from pipeline.execution.runner import JobsFailed
from pipeline.stages import synthesize as synthesize_module
from pipeline.stages.finalize import finalize
from pipeline.stages.status import PAUSE, Status, dataset_status, describe_status
from pipeline.stages.verify import verify
from pipeline.storage import listing
from pipeline.synthesis.job import ShardJob
from pipeline.synthesis.make_shard import make_shard
from pipeline.synthesis.shard_states import check_complete, ranges, shard_states
from tests.conftest import Params, changed, dataset, load, make, tree


@pytest.fixture
def five(tiny: Params) -> Params:
    """Parameters of a run of 20 images in 5 shards."""
    return changed(tiny, {"synthesis.shard_size": 4})


def status_of(params: Params) -> Status:
    config, teacher = load(params)
    return dataset_status(config, teacher)


def found(root: Path) -> dict[int, tuple[Any, str]]:
    return read_markers(root, listing(root))


def marker(root: Path, number: int, age: float = 0.0, **facts: Any) -> None:
    path = root / "metadata" / f".{number:06d}.running.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), **facts}))
    os.utime(path, (time.time() - age, time.time() - age))


# Markers.


def test_a_shard_is_running_while_it_is_made(tmp_path: Path) -> None:
    with marked(tmp_path, 3):
        assert found(tmp_path)[3][0] == "running"
    assert listing(tmp_path) == {}


def test_a_failure_is_told_until_the_next_attempt(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), marked(tmp_path, 3):
        raise ValueError("no\nluck")
    assert found(tmp_path) == {3: ("failed", "ValueError: no luck")}
    with marked(tmp_path, 3):
        assert found(tmp_path)[3][0] == "running"
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("stop", [Stopped("stopped"), KeyboardInterrupt()])
def test_a_stopped_shard_has_not_failed(tmp_path: Path, stop: BaseException) -> None:
    with pytest.raises(type(stop)), marked(tmp_path, 3):
        raise stop
    assert listing(tmp_path) == {}


def test_a_sign_of_life_every_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(run_markers.time, "monotonic", lambda: now)
    path = tmp_path / "metadata" / ".000003.running.json"
    with marked(tmp_path, 3) as alive:
        os.utime(path, (1, 1))
        alive()
        assert path.stat().st_mtime == 1
        now += REFRESH
        alive()
        assert path.stat().st_mtime > 1


def test_a_process_that_was_killed_is_not_running(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys\n"
        "from pipeline.dataset.run_markers import marked\n"
        "with marked(pathlib.Path(sys.argv[1]), 3):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert list(listing(tmp_path)) == ["metadata/.000003.running.json"]
    assert found(tmp_path) == {}


def test_of_another_host_the_age_tells(tmp_path: Path) -> None:
    marker(tmp_path, 1, age=0, host="elsewhere", pid=1)
    marker(tmp_path, 2, age=DEAD + 1, host="elsewhere", pid=1)
    marker(tmp_path, 3, age=DEAD + 1)
    assert found(tmp_path) == {1: ("running", "elsewhere, pid 1")}


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b'{"host": 1, "pid": "x"}'])
def test_a_marker_that_is_half_written(tmp_path: Path, text: bytes) -> None:
    marker(tmp_path, 1)
    (tmp_path / "metadata" / ".000001.running.json").write_bytes(text)
    assert found(tmp_path)[1][0] == "running"


def test_a_marker_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "metadata").write_text("a file where a directory should be")
    with marked(tmp_path, 3) as alive:
        alive()


# Status.


def test_the_states(
    five: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(five)
    whole = tree(dataset(five))
    for number in (1, 2, 3, 4):
        (dataset(five) / "metadata" / f"{number:06d}.json").unlink()

    def fragile(job: ShardJob, device: str, report: Any) -> Any:
        if job.number == 2:

            def no_luck(images: float) -> None:
                raise RuntimeError("out of luck")

            return make_shard(job, device, no_luck)
        return make_shard(job, device, report)

    with monkeypatch.context() as patch:
        patch.setattr(synthesize_module, "make_shard", fragile)
        with pytest.raises(JobsFailed):
            make(five, range(1, 3))
    marker(dataset(five), 3)
    status = status_of(five)
    assert status.shards == {"complete": [0, 1], "failed": [2], "running": [3], "missing": [4]}
    assert status.errors == {2: "RuntimeError: out of luck"}
    assert status.images_left == 12
    assert list(describe_status(status))[:5] == [
        "2 complete",
        "1 running: 000003",
        "1 failed: 000002",
        "1 missing: 000004",
        "shard 000002 failed: RuntimeError: out of luck",
    ]
    config, teacher = load(five)
    problems = verify(config, teacher, 0.0, lambda images: None)
    assert not any("does not belong" in problem for problem in problems)
    assert make(five) == [2, 3, 4]
    assert tree(dataset(five)) == whole


def test_a_lost_record_counts_the_same_everywhere(tiny: Params) -> None:
    params = changed(tiny, {"adaptive.rounds": 1})
    make(params)
    record = dataset(params) / "metadata" / "000000.json"
    text = record.read_bytes()
    record.unlink()
    config, teacher = load(params)
    expected = {"missing": [0], "complete": [1, 2]}
    assert dataset_status(config).shards == expected
    assert dataset_status(config, teacher).shards == expected
    with pytest.raises(UserError, match=r"^1 of 3 shards are not complete \(000000\)"):
        check_complete(shard_states(config, teacher.digest))
    assert make(params) == [0]
    assert record.read_bytes() == text


def test_finalize_removes_markers(five: Params) -> None:
    make(five)
    whole = tree(dataset(five))
    marker(dataset(five), 1, age=2 * DEAD)
    assert status_of(five).shards == {"complete": [0, 1, 2, 3, 4]}
    finalize(*load(five))
    assert tree(dataset(five)) == whole


def finished_at(params: Params, times: dict[int, float]) -> None:
    for number, moment in times.items():
        os.utime(dataset(params) / "metadata" / f"{number:06d}.json", (moment, moment))


def test_speed_and_time_left(five: Params) -> None:
    make(five)
    (dataset(five) / "metadata" / "000004.json").unlink()
    finished_at(five, {0: 1000, 1: 1002, 2: 1004, 3: 1006})
    status = status_of(five)
    assert status.speed == pytest.approx(2.0)
    assert status.seconds_left == pytest.approx(2.0)
    assert (
        list(describe_status(status))[-1] == "2 images/s lately, 4 images left: 2 s at that speed"
    )


def test_a_pause_does_not_count(five: Params) -> None:
    make(five)
    (dataset(five) / "metadata" / "000004.json").unlink()
    night = 1000 + 2 * PAUSE
    finished_at(five, {0: 996, 1: 1000, 2: night, 3: night + 8})
    assert status_of(five).speed == pytest.approx(0.5)


def test_no_speed_without_two_moments(five: Params) -> None:
    make(five, range(0, 2))
    finished_at(five, {0: 1000, 1: 1000})
    status = status_of(five)
    assert status.speed is None and status.seconds_left is None
    assert list(describe_status(status)) == ["2 complete", "3 missing: 000002-000004"]


def test_a_complete_dataset_has_no_time_left(
    five: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(five)
    (tmp_path / "params.yaml").write_text(json.dumps(five))
    assert main(["status", "--params", str(tmp_path / "params.yaml")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "5 complete"


def test_ranges() -> None:
    assert ranges([]) == ""
    assert ranges([5, 3, 4, 9]) == "000003-000005, 000009"
    assert ranges(range(0, 40, 2), most=2) == "000000, 000002, ..."
