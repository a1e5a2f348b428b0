"""Students are compared with the teacher on synthetic images that they have not learnt from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cli import main
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.plan import plan_of
from pipeline.dataset.stream import shard_batches
from pipeline.evaluation.held_out import describe_held_out, held_out_agreement
from pipeline.execution.executor import InProcess
from pipeline.execution.runner import local_runner
from pipeline.params import parse_params
from pipeline.reports.files import report_distillation, report_synthesis
from pipeline.stages.distill import distill_students
from tests.command_line import printed
from tests.conftest import Params, changed, dataset, load, tree, write_blobs, write_params

Results = list[tuple[Any, Any, Any]]


def distilled(params: Params) -> tuple[dict[str, Any] | None, Results]:
    """Train the students; what was found, and the results of all inversions for it."""
    config, teacher = load(params)
    run, results = local_runner(InProcess("cpu"), 0), []
    distill_students(config, teacher, run)

    def watched(work: Any, jobs: Sequence[Any], text: str) -> list[Any]:
        made = run(work, jobs, text)
        results.extend(made)
        return made

    found = held_out_agreement(config, teacher, watched)
    report_distillation(config, [], found)
    return found, results


def test_the_images_are_not_those_of_the_dataset(made: Params) -> None:
    before = tree(dataset(made))
    found, results = distilled(made)
    assert found is not None
    ((pixels, labels, _),) = results
    assert len(pixels) == found["images"] == 16
    assert tree(dataset(made)) == before
    paths = Dataset.planned(parse_params(made)).paths.tars
    theirs = torch.cat([batch for batch, _ in shard_batches(paths, 8)])
    assert not any((theirs == image).flatten(1).all(1).any() for image in pixels)
    counts = np.bincount(labels.numpy(), minlength=3)
    assert counts.sum() == 16 and counts.min() >= 3
    assert 0 <= found["agreement"] <= 1 and set(found["agreements"]) == {"0"}


def test_it_is_measured_once_and_again_for_other_students(made: Params) -> None:
    found, results = distilled(made)
    assert len(results) == 1
    again, results = distilled(made)
    assert results == [] and again == found
    other, results = distilled(changed(made, {"distillation.steps": 9}))
    assert len(results) == 1 and other is not None and found is not None
    assert other["of"] != found["of"]


def test_students_and_dataset_are_the_same_with_and_without_it(
    made: Params, tmp_path: Path
) -> None:
    distilled(made)
    students = tree(Path(made["paths"]["students"]))
    changes = {"evaluation.held_out": 0, "paths.students": str(tmp_path / "others")}
    found, results = distilled(changed(made, changes))
    assert found is None and results == []
    assert tree(tmp_path / "others") == students


def test_real_images_take_its_place(made: Params, tmp_path: Path) -> None:
    write_blobs(tmp_path / "real.tar", 3)
    found, results = distilled(changed(made, {"evaluation.data": str(tmp_path / "real.tar")}))
    assert found is None and results == []


def test_a_failure_is_a_warning(made: Params, caplog: pytest.LogCaptureFixture) -> None:
    config, teacher = load(made)
    distill_students(config, teacher, local_runner(InProcess("cpu"), 0))

    def fail(*_: Any) -> list[Any]:
        raise RuntimeError("out of memory")

    assert held_out_agreement(config, teacher, fail) is None
    assert "not compared on held-out images, which failed: out of memory" in caplog.text


@pytest.mark.parametrize("table", [{0: 9, 2: 4}, 5])
def test_the_classes_are_those_of_the_dataset(tiny: Params, table: Any) -> None:
    from pipeline.evaluation.held_out import _recipe

    changes = {"synthesis.images": None, "synthesis.images_per_class": table}
    config = parse_params(changed(tiny, changes))
    mine, theirs = plan_of(_recipe(config)).labels, plan_of(config).labels
    assert set(mine.tolist()) <= set(theirs.tolist())
    assert len(mine) == min(16, len(theirs))


def test_distill_and_summary_show_it_and_its_worth(
    made: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_params(made, tmp_path / "p.yaml"))
    _, shown = printed(capsys, "distill", "--params", path)
    assert "agreement with the teacher on 16 synthetic images that no student has learnt" in shown
    assert "on real images it is usually lower" in shown
    report_synthesis(parse_params(made), [])
    summary = printed(capsys, "summary", "--params", path)
    assert f"student    {shown}" in summary
    report = json.loads((Path(made["paths"]["reports"]) / "distillation.json").read_bytes())
    assert report["held_out"]["images"] == 16
    assert main(["summary", "--params", path, "--set", "evaluation.data=x.tar"]) == 0
    assert "no student has learnt" not in capsys.readouterr().out


def test_the_margin_is_never_nothing() -> None:
    text = describe_held_out({"agreement": 1.0, "images": 16})
    assert text.startswith("100.0% agreement") and "give or take 12%" in text
