"""The last part of the flow ``dream``: measures, accuracies, the summary, and their artifacts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from flows.artifacts import publish_picture, publish_summary, publish_table
from pipeline.config.schema import Config
from pipeline.evaluation.accuracy import evaluate_classes
from pipeline.evaluation.dataset_measures import measure
from pipeline.reports.files import report_evaluation, report_measures
from pipeline.reports.page.write import write_page
from pipeline.reports.summary import summarise
from pipeline.synthesis.outputs import GRIDS
from pipeline.teachers.teacher import Teacher


def judge(config: Config, teacher: Teacher) -> str:
    """Measure dataset and students, and show the results. Returns the summary."""
    reports = Path(config.paths.reports)
    if config.evaluation.data is not None:
        report_evaluation(config, *evaluate_classes(config, teacher))
        rows = _rows(reports / "accuracy.csv")
        publish_table("accuracy", rows, f"Accuracy on the real images of {config.evaluation.data}")
    report_measures(config, *measure(config, teacher))
    write_page(config)
    publish_picture("images", reports / GRIDS / "round-0.png", "Images of the first round")
    publish_picture("learning-curves", reports / "distillation.png", "Learning curves")
    summary = summarise(config)
    publish_summary(config, summary)
    return summary


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
