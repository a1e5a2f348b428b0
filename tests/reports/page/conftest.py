"""A run whose dataset is real and tiny, and whose reports a test can choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pipeline.params import parse_params
from pipeline.reports.page.run import Run, run_of_config, verify_command
from pipeline.reports.page.saved import Saved
from tests.conftest import Params

EVALUATION = {
    "teacher_accuracy": 0.95,
    "student_accuracy": 0.9,
    "student_accuracies": {"0": 0.91, "1": 0.89},
    "noise_baseline_accuracy": 0.4,
    "procedural_baseline_accuracy": 0.6,
    "real_images": 2000,
}
CURVE = [(float(step), 1.0 / (1 + step)) for step in range(30)]
LOGS = {
    name: {"loss": CURVE, "agreement": [(x, 1 - y) for x, y in CURVE]}
    for name in ("student-0", "student-1", "noise-0", "procedural-0")
}
CONFUSION = {
    "teacher": {(0, 0): 50, (1, 1): 50, (2, 2): 45, (2, 0): 5},
    "student-0": {(0, 0): 50, (1, 1): 40, (1, 2): 10, (2, 2): 45, (2, 0): 5},
    "student-1": {(0, 0): 50, (1, 1): 42, (1, 2): 8, (2, 2): 46, (2, 0): 4},
}
VERDICT = {"level": "usable", "reasons": ["the images are good"], "views": {}}


@pytest.fixture
def bare(made: Params) -> Run:
    """A dataset that nobody measured."""
    return run_of_config(parse_params(made), "job.yaml", verify_command("job.yaml"))


@pytest.fixture
def without_labels(unlabelled_dataset: Params) -> Run:
    """A dataset without labels, with the reports of its synthesis."""
    run = run_of_config(parse_params(unlabelled_dataset), "job.yaml")
    synthesis = {"images": 20, "classes": 0, "verdict": VERDICT}
    return replace(run, saved=Saved(synthesis=synthesis, measures={"statistics_gap": 0.1}))


@pytest.fixture
def with_reports(bare: Run) -> Callable[..., Run]:
    """Call this with parts of :class:`Saved`: it gives a run with these reports."""

    def build(**parts: Any) -> Run:
        return replace(bare, saved=Saved(**parts))

    return build


@pytest.fixture
def full(with_reports: Callable[..., Run]) -> Run:
    """A dataset with every report."""
    return with_reports(
        synthesis={
            "images": 20,
            "verdict": VERDICT,
            "made_now": {"images": 20, "worker_seconds": 2.0},
        },
        distillation={"made_now": {"students": 4, "worker_seconds": 8.0}},
        evaluation=EVALUATION,
        measures={"near_duplicates": 0.2, "statistics_gap": 0.1},
        logs=LOGS,
        confusion=CONFUSION,
    )
