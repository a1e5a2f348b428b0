from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.estimation.device_timing import DeviceTiming
from tests.command_line import printed, refused
from tests.conftest import Params, dataset


def test_plan(capsys: pytest.CaptureFixture[str], params: Path, tiny: Params) -> None:
    settings = ["--set", "adaptive.rounds=1", "--set", "synthesis.seed=5"]
    lines = printed(capsys, "plan", "--params", str(params), "--list", *settings)
    assert lines[0] == "26 images of 3 classes in 3 shards"
    assert lines[1] == "8 to 9 images a class, seed 5"
    assert [line.split() for line in lines[4:-1]] == [
        ["000000", "0", "12", "2", "3", "0"],
        ["000001", "0", "8", "2", "3", "12"],
        ["000002", "1", "6", "1", "3", "20"],
    ]
    assert not dataset(tiny).exists()


def test_a_plan_of_many_shards_is_short(capsys: pytest.CaptureFixture[str], params: Path) -> None:
    many = ["--set", "synthesis.images=100000", "--set", "synthesis.shard_size=1"]
    lines = printed(capsys, "plan", "--params", str(params), *many)
    assert lines[0] == "100000 images of 3 classes in 100000 shards"
    assert len(lines) == 4


def test_what_a_plan_costs(capsys: pytest.CaptureFixture[str], params: Path) -> None:
    given = ["--images-per-second", "0.5", "--devices", "1", "64"]
    lines = printed(capsys, "plan", "--params", str(params), *given)
    assert lines[3].split()[0] == "devices"
    assert [line.split()[:4] for line in lines[4:]] == [
        ["1", "0.5", "2", "40"],
        ["64", "0.8333", "1", "24"],
    ]
    lines = printed(capsys, "plan", "--params", str(params), *given, "--set", "adaptive.rounds=1")
    assert lines[-1].startswith("without the students' training")


def test_what_a_plan_costs_measured(capsys: pytest.CaptureFixture[str], params: Path) -> None:
    lines = printed(capsys, "plan", "--params", str(params), "--probe")
    assert lines[3].startswith("measured on 1 device at once")
    assert lines[-1].split()[0] == "1"


def test_a_job_is_measured_once(
    capsys: pytest.CaptureFixture[str],
    params: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = ["plan", "--params", str(params)]
    measured = printed(capsys, *plan, "--probe")[3:]
    asked: list[Config] = []

    def refuse(config: Config) -> list[DeviceTiming]:
        asked.append(config)
        raise UserError("it measures again")

    monkeypatch.setattr("pipeline.commands.plan.probe_devices", refuse)
    stored = tmp_path / "reports" / "plan.json"
    for words in (["--probe"], []):
        lines = printed(capsys, *plan, *words)
        assert lines[3] == f"stored: {stored} (delete it to measure again)"
        assert lines[4:] == measured
    assert printed(capsys, *plan, "--probe", "--set", "synthesis.images=32")[4] == measured[0]
    assert printed(capsys, *plan, "--images-per-second", "2")[3].split()[0] == "devices"
    assert not asked
    for change in ("synthesis.batch_size=4", "synthesis.iterations=9", "teacher.arguments.width=7"):
        assert main([*plan, "--probe", "--set", change]) == 2
    stored.write_text('{"devices": [')
    assert main([*plan, "--probe"]) == 2
    assert len(asked) == 4


def test_plan_of_equal_classes(capsys: pytest.CaptureFixture[str], params: Path) -> None:
    lines = printed(capsys, "plan", "--params", str(params), "--set", "synthesis.images=9")
    assert lines[1] == "3 images a class, seed 0"


def test_plan_of_fewer_images_than_classes(
    capsys: pytest.CaptureFixture[str], params: Path
) -> None:
    lines = printed(capsys, "plan", "--params", str(params), "--set", "synthesis.images=2")
    assert lines[1] == "0 to 1 images a class, seed 0"


@pytest.mark.parametrize("seconds", ["0", "inf", "nan"])
def test_a_trial_of_no_time(capsys: pytest.CaptureFixture[str], params: Path, seconds: str) -> None:
    text = refused(capsys, "probe", "--params", str(params), "--seconds", seconds)
    assert "--seconds is" in text


def test_plan_takes_the_speed_that_probe_measured(
    capsys: pytest.CaptureFixture[str], params: Path, tmp_path: Path
) -> None:
    plan = ["plan", "--params", str(params)]
    unknown = "time: measure it with --probe"
    assert printed(capsys, *plan)[-1].startswith(unknown)
    printed(capsys, "probe", "--params", str(params), "--seconds", "1")
    assert any("as `probe` measured uncompiled" in line for line in printed(capsys, *plan))
    # Not those of another teacher, nor a file that was cut off.
    assert printed(capsys, *plan, "--set", "teacher.arguments.width=7")[-1].startswith(unknown)
    (tmp_path / "reports" / "probe.json").write_text('{"image_iterations')
    assert printed(capsys, *plan)[-1].startswith(unknown)
