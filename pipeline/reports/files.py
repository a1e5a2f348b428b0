"""The files in ``paths.reports``: metrics as JSON, series as CSV, and pictures."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.evaluation.accuracy import Answer
from pipeline.objective.terms import reported_names
from pipeline.quantities import fraction, six_digits
from pipeline.reports.pictures import (
    Curve,
    draw_distillation_curves,
    draw_grids,
    draw_pairs,
    draw_synthesis_curves,
    read_log,
)
from pipeline.reports.tally import RecordTally
from pipeline.stages.final_students import STUDENT, weights_path
from pipeline.storage import write_bytes, write_json
from pipeline.synthesis.job import Made
from pipeline.synthesis.outputs import claim_output

PAGE = "index.html"  # the report as one page
CONFUSION, CONFUSION_SYNTHETIC = "confusion.csv", "confusion_synthetic.csv"
log = logging.getLogger(__name__)
BASELINE_TEXTS = {"noise": "noise", "procedural": "procedural pictures that the teacher selected"}


def report_synthesis(
    config: Config, made: Sequence[Made], verdict: dict[str, Any] | None = None
) -> Path:
    """Write the report of a synthesis.

    The files are ``synthesis.json`` (metrics), ``synthesis.csv`` and ``synthesis.png`` (loss
    curves), ``grids/round-N.png`` and, with labels, ``classes.csv`` (images of each class).

    Args:
        config: The configuration. The records of its dataset are read.
        made: Results of the shard jobs of this run.
        verdict: The report of :class:`pipeline.evaluation.verdict.Verdict`, if there is one.

    Returns:
        The grid of the first round.
    """
    reports, tally = _claimed_reports(config), RecordTally()
    for record in Dataset.planned(config).records():
        tally.add(record)
    if tally.flaws:
        flaws = ", ".join(f"{count} {word}" for word, count in sorted(tally.flaws.items()))
        log.warning(
            "of %d images, these remain in the dataset after %d attempts: %s. The column `flaw` of "
            "the Parquet files marks them",
            tally.images,
            config.synthesis.attempts,
            flaws,
        )
    curves = tally.mean_curves()
    answers = {}
    if config.teacher.labelled:
        answers["teacher_agreement"] = fraction(tally.agreement, tally.images)
        answers["teacher_confidence"] = fraction(tally.confidence, tally.images)
    report: dict[str, Any] = {
        "images": tally.images,
        "shards": tally.shards,
        "rounds": config.adaptive.rounds,
        "classes": len(tally.counts),
        **answers,
        "replaced": dict(tally.replaced),
        "flaws": dict(tally.flaws),
        "made_now": {
            "shards": len(made),
            "images": sum(shard.images for shard in made),
            "worker_seconds": round(sum(shard.seconds for shard in made), 2),
        },
        "losses": {
            name: six_digits(values[-1])
            for name, values in curves[max(curves)].items()
            if name != "iteration"
        },
    }
    if verdict is not None:
        report["verdict"] = verdict
    write_json(reports / "synthesis.json", report)
    write_bytes(reports / "synthesis.csv", _csv(_curve_rows(curves)))
    rows = [{"class": label, "images": tally.counts[label]} for label in sorted(tally.counts)]
    if rows:
        write_bytes(reports / "classes.csv", _csv(rows))
    draw_synthesis_curves(curves, reports / "synthesis.png")
    return draw_grids(config, reports)[0]


def report_measures(
    config: Config, report: dict[str, Any], pairs: Tensor, answers: Sequence[Answer]
) -> Path:
    """Write ``measures.json``, the confusion and a picture of the most similar pairs of images.

    The confusion, ``confusion_synthetic.csv``, has no rows without labels.

    Args:
        config: The configuration.
        report: All measures.
        pairs: Images, uint8 ``[P, 2, C, H, W]``.
        answers: The answers of teacher and student to the images by class.

    Returns:
        The picture.
    """
    reports = _claimed_reports(config)
    write_json(reports / "measures.json", report)
    write_bytes(reports / CONFUSION_SYNTHETIC, _confusion(answers))
    path = reports / "alike.png"
    draw_pairs([(first, second) for first, second in pairs.numpy()], path)
    return path


def report_distillation(
    config: Config,
    trained: Sequence[dict[str, float]],
    held_out: dict[str, Any] | None = None,
) -> None:
    """Write ``distillation.json``, and the students' curves as a CSV and a picture.

    Args:
        config: The configuration. The logs of its students are read.
        trained: Results of the students that this run trained.
        held_out: From :func:`~pipeline.evaluation.held_out.held_out_agreement`.
    """
    reports = _claimed_reports(config)
    logs = [weights_path(config, STUDENT, s).with_suffix(".csv") for s in config.distillation.seeds]
    first = config.distillation.seeds[0]
    logs += [
        weights_path(config, kind, first).with_suffix(".csv")
        for kind in config.distillation.baselines
    ]
    rows = [{"student": log.stem, **row} for log in logs for row in read_log(log)]
    report: dict[str, Any] = {
        "students": {log.stem: read_log(log)[-1] for log in logs},
        "made_now": {
            "students": len(trained),
            "worker_seconds": round(sum(row["seconds"] for row in trained), 2),
        },
    }
    if held_out is not None:
        report["held_out"] = held_out
    write_json(reports / "distillation.json", report)
    write_bytes(reports / "distillation.csv", _csv(rows))
    draw_distillation_curves(logs, reports / "distillation.png")


def report_evaluation(config: Config, report: dict[str, Any], answers: Sequence[Answer]) -> None:
    """Write ``evaluation.json``, ``accuracy.csv`` for a bar chart, and ``confusion.csv``.

    Args:
        config: The configuration.
        report: All accuracies, as fractions.
        answers: The answers of every network by class.
    """
    reports = _claimed_reports(config)
    rows = [{"model": "teacher", "accuracy": report["teacher_accuracy"]}]
    rows += [
        {"model": f"student, seed {seed}", "accuracy": accuracy}
        for seed, accuracy in report.get("student_accuracies", {}).items()
    ]
    rows += [
        {"model": f"student of {kind}", "accuracy": report[f"{kind}_baseline_accuracy"]}
        for kind in BASELINE_TEXTS
        if f"{kind}_baseline_accuracy" in report
    ]
    write_json(reports / "evaluation.json", report)
    write_bytes(reports / "accuracy.csv", _csv(rows))
    write_bytes(reports / CONFUSION, _confusion(answers))


def report_calibration(config: Config, report: dict[str, Any]) -> None:
    """Write ``calibration.json``."""
    write_json(_claimed_reports(config) / "calibration.json", report)


def _claimed_reports(config: Config) -> Path:
    """Return the reports folder, marked as one of this project."""
    claim_output(config, "reports")
    return Path(config.paths.reports)


def _curve_rows(curves: Mapping[int, Curve]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for round_, curve in sorted(curves.items()):
        names = [name for name in curve if name in reported_names(student=False)]
        for index, iteration in enumerate(curve["iteration"]):
            values = {name: f"{curve[name][index]:.6g}" for name in names}
            rows.append({"round": round_, "iteration": int(iteration), **values})
    return rows


def _confusion(answers: Sequence[Answer]) -> bytes:
    names = [each.name for each in fields(Answer)]
    return _csv([asdict(answer) for answer in answers], names)


def _csv(rows: Sequence[dict[str, Any]], names: Sequence[str] | None = None) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=names or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
