"""The flow ``dream`` with its stages in this process, and no Prefect server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import flows.artifacts
import flows.distill
import flows.dream
import flows.running
import flows.synthesize
import pipeline.params
import pipeline.synthesis.check
import pipeline.teachers.teacher
from flows.command_line import main
from pipeline.execution.runner import local_runner
from tests.conftest import Params, changed, dataset, tree, write_blobs, write_params

AfterStage = Callable[[str], object]


@pytest.fixture
def without_prefect(monkeypatch: pytest.MonkeyPatch) -> Callable[[AfterStage], None]:
    """Call this with what happens after each stage: flows then run as plain functions."""

    def install(after: AfterStage) -> None:
        def run(
            name: str, work: Callable[[], Any], parameters: Mapping[str, Any], config: Any
        ) -> Any:
            result = work()
            after(name)
            return result

        for module in (flows.running, flows.dream):
            monkeypatch.setattr(module, "run_as_flow", run)
        for stage in (flows.synthesize, flows.distill):
            monkeypatch.setattr(stage, "job_runner", local_runner)
        monkeypatch.setattr(flows.artifacts, "publish", lambda send: None)

    return install


@pytest.fixture
def whole(tiny: Params, tmp_path: Path) -> Params:
    """Parameters with everything that loads a teacher: a round, both baselines, real data."""
    write_blobs(tmp_path / "real.tar", 30)
    return changed(
        tiny,
        {
            "adaptive.rounds": 1,
            "distillation.noise_baseline": True,
            "distillation.procedural_baseline": True,
            "evaluation.data": str(tmp_path / "real.tar"),
        },
    )


def test_one_run_loads_the_teacher_and_the_file_once(
    whole: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_prefect: Callable[[AfterStage], None],
) -> None:
    counts = {"load_teacher": 0, "load_params": 0}

    def count(place: Any, name: str) -> None:
        original = getattr(place, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            counts[name] += 1
            return original(*arguments, **more)

        for module in (place, pipeline.synthesis.check, flows.dream, flows.distill):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, counted)
        monkeypatch.setattr(f"flows.command_line.{name}", counted, raising=False)

    count(pipeline.teachers.teacher, "load_teacher")
    count(pipeline.params, "load_params")
    stages: list[str] = []
    without_prefect(stages.append)
    workers = changed(whole, {"execution.workers": 2})  # one would work in this process
    path = write_params(workers, tmp_path / "params.yaml")
    assert main(["dream", "--params", str(path)]) == 0
    assert stages == ["synthesize", "distill", "dream"]
    assert counts == {"load_teacher": 1, "load_params": 1}


def test_an_edit_of_the_file_during_a_run_changes_nothing_of_the_run(
    whole: Params, tmp_path: Path, without_prefect: Callable[[AfterStage], None]
) -> None:
    places = {"paths.dataset": "dataset", "paths.students": "students", "paths.reports": "reports"}
    edited = changed(whole, {key: str(tmp_path / "edited" / to) for key, to in places.items()})
    path = tmp_path / "params.yaml"
    other = changed(
        edited, {"synthesis.iterations": 2, "distillation.steps": 3, "distillation.seeds": [5]}
    )
    for params, after in (
        (whole, lambda stage: None),
        (edited, lambda stage: write_params(other, path)),
    ):
        without_prefect(after)
        write_params(params, path)
        assert main(["dream", "--params", str(path)]) == 0
    assert path.read_text() == write_params(other, tmp_path / "other.yaml").read_text()
    assert tree(dataset(edited)) == tree(dataset(whole))
    assert tree(Path(edited["paths"]["students"])) == tree(Path(whole["paths"]["students"]))
