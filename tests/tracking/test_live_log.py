"""What each logger wrote, read back with its own reader; and a training that no logger changes."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.distillation.job import DistillJob
from pipeline.distillation.train_student import distill
from pipeline.errors import UserError
from pipeline.execution.executor import Stopped
from pipeline.execution.runner import open_runner
from pipeline.stages.distill import distill_students
from pipeline.stages.final_students import student_jobs
from pipeline.tracking import loggers
from pipeline.tracking.live_log import LiveLog, Tracking, live_log
from tests.conftest import Params, changed, load, tree

NAMES = ("loss", "agreement", "accuracy")
Points = dict[str, list[tuple[int, float]]]


def read_dvclive(live: Path) -> Points:
    found: Points = {}
    for path in (live / "plots" / "student-0" / "metrics").glob("*.tsv"):
        with path.open() as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        found[path.stem] = [(int(row["step"]), float(row[path.stem])) for row in rows]
    return found


def read_tensorboard(live: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (live / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def read_wandb(live: Path) -> Points:
    """Read the file that ``wandb sync`` uploads: a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (live / "wandb").glob("offline-run-*/*.wandb")
    found: Points = {}
    for data in leveldb_records(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        items = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
        for name in NAMES:
            found.setdefault(name, []).append((int(items["_step"]), float(items[name])))
    return found


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file with the seven bytes of a header before them."""
    offset, parts = 7, b""
    while offset + 7 <= len(data):
        if (left := 32768 - offset % 32768) < 7:
            offset += left
            continue
        length, kind = int.from_bytes(data[offset + 4 : offset + 6], "little"), data[offset + 6]
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def read_mlflow(live: Path) -> Points:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{live.resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name("dreamshard")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("student-0", "FINISHED")
    return {
        name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


READERS: dict[str, Callable[[Path], Points]] = {
    "dvclive": read_dvclive,
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
}


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("WANDB_", "MLFLOW_", "DVC")):
            monkeypatch.delenv(name)


def job_with(params: Params, logger: str) -> DistillJob:
    (job,) = student_jobs(*load(changed(params, {"execution.logger": logger})))
    return job


def live(params: Params) -> Path:
    return Path(params["paths"]["reports"]) / "live"


def stopping_at(step: int) -> Callable[[float], None]:
    calls: list[float] = []

    def report(images: float) -> None:
        calls.append(images)
        if len(calls) == step + 1:  # the first call comes before the first step
            raise Stopped("stopped")

    return report


def rows_of(job: DistillJob) -> Points:
    with open(str(job.log)) as file:
        rows = list(csv.DictReader(file))
    return {name: [(int(row["step"]), float(row[name])) for row in rows] for name in NAMES}


def test_every_logger_has_a_reader() -> None:
    assert set(READERS) == set(loggers.LOGGERS)


@pytest.mark.slow
@pytest.mark.parametrize("logger", loggers.LOGGERS)
def test_a_logger_has_each_step_once_after_a_stop_and_changes_no_weights(
    made: Params, tmp_path: Path, logger: str
) -> None:
    plain = job_with(made, "none")
    assert plain.tracking is None
    distill(plain, "cpu", lambda images: None)
    expected = tree(Path(made["paths"]["students"]))

    job = replace(job_with(made, logger), output=tmp_path / "logged" / "student-0.safetensors")
    job.output.parent.mkdir()
    with pytest.raises(Stopped):
        distill(job, "cpu", stopping_at(5))
    distill(job, "cpu", lambda images: None)

    assert tree(tmp_path / "logged") == expected
    found, rows = READERS[logger](live(made)), rows_of(job)
    assert found.keys() == rows.keys()
    for name, points in rows.items():
        assert [step for step, _ in found[name]] == [1, 2, 3, 4, 5, 6]
        assert found[name] == [(step, pytest.approx(value, rel=1e-5)) for step, value in points]


class Failing:
    """A logger that fails at one of its two methods."""

    def __init__(self, where: str) -> None:
        self.where, self.steps = where, list[int]()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.where == "log" and step == 3:
            raise OSError("the disk is full")
        self.steps.append(step)

    def close(self) -> None:
        if self.where == "close":
            raise RuntimeError("the server is gone")


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_failing_logger_is_a_warning_and_the_training_goes_on(
    made: Params, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    failing = Failing(where)

    def begin(tracking: Tracking, run: str) -> Failing:
        if where == "open":
            raise ImportError("no such package on this worker")
        return failing

    monkeypatch.setattr(Tracking, "open", begin)
    monkeypatch.setattr(loggers, "find_spec", lambda name: object())
    config, teacher = load(changed(made, {"execution.logger": "wandb"}))
    with open_runner(config) as run:
        assert len(distill_students(config, teacher, run)) == 1
    assert caplog.text.count("student-0: its logger failed (") == 1
    assert failing.steps == {"open": [], "log": [1, 2], "close": [1, 2, 3, 4, 5, 6]}[where]


@pytest.mark.parametrize("logger", loggers.LOGGERS)
def test_a_missing_package_is_refused_before_any_work(
    tiny: Params, monkeypatch: pytest.MonkeyPatch, logger: str
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    config, teacher = load(changed(tiny, {"execution.logger": logger}))
    with (
        pytest.raises(UserError, match=rf"the package {logger} is not installed: pip install .*"),
        open_runner(config) as run,
    ):
        distill_students(config, teacher, run)  # there is no dataset, which would be refused later


def test_dvclive_is_the_default_in_a_stage_of_dvc(
    tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(**changes: Any) -> str | None:
        config, _ = load(changed(tiny, {f"execution.{key}": it for key, it in changes.items()}))
        return loggers.chosen_logger(config.execution)

    assert chosen() is None
    monkeypatch.setenv("DVC_STAGE", "distill")
    assert chosen() == "dvclive"
    assert chosen(logger="none") is None
    assert chosen(logger="mlflow") == "mlflow"
    assert chosen(dask_address="tcp://host:8786") is None  # it would write on another host
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    assert chosen() is None


def test_the_logs_of_dvclive_are_those_of_the_students_that_there_are(made: Params) -> None:
    folder = live(made)
    for name in ("student-0", "student-7"):
        (folder / "plots" / name / "metrics").mkdir(parents=True)
        (folder / "metrics").mkdir(exist_ok=True)
        (folder / "metrics" / f"{name}.json").write_text("{}")
    (folder / "plots" / "mine").mkdir()
    config, _ = load(made)
    loggers.clear_live_logs(config, {"student-0"})
    assert sorted(path.name for path in (folder / "metrics").iterdir()) == ["student-0.json"]
    assert sorted(path.name for path in (folder / "plots").iterdir()) == ["mine", "student-0"]


def test_rows_are_sent_once() -> None:
    sent = Failing("never")
    track = LiveLog(lambda: sent, "student-0")
    rows = [{"step": float(step), "loss": 1.0} for step in (10, 20, 30)]
    for end in (2, 2, 3):
        track(rows[:end])
    assert sent.steps == [10, 20, 30]
    with live_log(None, "") as nothing:
        nothing(rows)


def test_loggers_are_imported_only_when_they_are_used(made: Params) -> None:
    code = (
        "import sys; import pipeline.distillation.train_student, pipeline.stages.distill; "
        f"print([name for name in {loggers.LOGGERS} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
