"""The files in ``reports/``: metrics as JSON, series as CSV, pictures."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config import Config
from pipeline.dataset import read_records
from pipeline.pictures import (
    draw_distillation_curves,
    draw_grids,
    draw_pairs,
    draw_synthesis_curves,
    mean_curve,
    read_log,
)
from pipeline.provenance import ShardRecord
from pipeline.storage import write_bytes, write_json
from pipeline.students import NOISE, STUDENT, weights_path
from pipeline.synthesis import Made


def report_synthesis(config: Config, made: Sequence[Made]) -> Path:
    """``synthesis.json``, the loss curves, the class histogram and a grid for each round."""
    reports, records = Path(config.paths.reports), read_records(config)
    images = sum(record.images for record in records)
    seconds = sum(shard.seconds for shard in made)
    counts: Counter[int] = Counter()
    for record in records:
        counts.update({int(label): count for label, count in record.class_counts.items()})
    report = {
        "images": images,
        "shards": len(records),
        "rounds": config.adaptive.rounds,
        "classes": len(counts),
        "teacher_agreement": _mean(records, "agreement"),
        "teacher_confidence": _mean(records, "confidence"),
        "made_now": {
            "shards": len(made),
            "images": sum(shard.images for shard in made),
            "worker_seconds": round(seconds, 2),
        },
        "losses": {
            name: value for name, value in records[-1].curve[-1].items() if name != "iteration"
        },
    }
    write_json(reports / "synthesis.json", report)
    write_bytes(reports / "synthesis.csv", _csv(_curve_rows(records)))
    rows = [{"class": label, "images": counts[label]} for label in sorted(counts)]
    write_bytes(reports / "classes.csv", _csv(rows))
    draw_synthesis_curves(records, reports / "synthesis.png")
    return draw_grids(config, reports)[0]


def report_measures(config: Config, report: dict[str, Any], pairs: Tensor) -> Path:
    """``measures.json``, and a picture of the most alike pairs."""
    reports = Path(config.paths.reports)
    write_json(reports / "measures.json", report)
    path = reports / "alike.png"
    draw_pairs([(first, second) for first, second in pairs.numpy()], path)
    return path


def report_distillation(config: Config, trained: Sequence[dict[str, float]]) -> None:
    """``distillation.json`` and the students' curves, in one CSV and one picture."""
    reports = Path(config.paths.reports)
    logs = [weights_path(config, STUDENT, s).with_suffix(".csv") for s in config.distillation.seeds]
    if config.distillation.noise_baseline:
        first = config.distillation.seeds[0]
        logs.append(weights_path(config, NOISE, first).with_suffix(".csv"))
    rows = [{"student": log.stem, **row} for log in logs for row in read_log(log)]
    report = {
        "students": {log.stem: read_log(log)[-1] for log in logs},
        "made_now": {
            "students": len(trained),
            "worker_seconds": round(sum(row["seconds"] for row in trained), 2),
        },
    }
    write_json(reports / "distillation.json", report)
    write_bytes(reports / "distillation.csv", _csv(rows))
    draw_distillation_curves(logs, reports / "distillation.png")


def report_evaluation(config: Config, report: dict[str, Any]) -> None:
    """``evaluation.json`` and its accuracies as a CSV for a bar chart."""
    reports = Path(config.paths.reports)
    rows = [{"model": "teacher", "accuracy": report["teacher_accuracy"]}]
    rows += [
        {"model": f"student, seed {seed}", "accuracy": accuracy}
        for seed, accuracy in report["student_accuracies"].items()
    ]
    if "noise_baseline_accuracy" in report:
        rows.append({"model": "student of noise", "accuracy": report["noise_baseline_accuracy"]})
    write_json(reports / "evaluation.json", report)
    write_bytes(reports / "accuracy.csv", _csv(rows))


def summarise(config: Config) -> str:
    """The end of a run in a few lines, from the reports."""
    reports = Path(config.paths.reports)
    synthesis = json.loads((reports / "synthesis.json").read_bytes())
    lines = [
        f"dataset   {synthesis['images']} images, {synthesis['classes']} classes, "
        f"{synthesis['shards']} shards in {config.paths.dataset}/",
        f"labels    {synthesis['teacher_agreement']:.1%} confirmed by the teacher",
    ]
    if (reports / "evaluation.json").is_file():
        result = json.loads((reports / "evaluation.json").read_bytes())
        seeds = ", ".join(f"{value:.1%}" for value in result["student_accuracies"].values())
        lines += [
            f"teacher   {result['teacher_accuracy']:.1%} on {result['real_images']} real images",
            f"student   {result['student_accuracy']:.1%} (mean of {seeds}), "
            "trained on the synthetic images only",
        ]
        if "noise_baseline_accuracy" in result:
            lines.append(
                f"noise     {result['noise_baseline_accuracy']:.1%}, the same student on noise"
            )
    lines += [
        f"students  {config.paths.students}/",
        f"look at   {reports / 'grids' / 'round-0.png'}",
    ]
    return "\n".join(lines)


def _mean(records: Sequence[ShardRecord], name: str) -> float:
    total = sum(getattr(record, name) * record.images for record in records)
    return float(round(total / sum(record.images for record in records), 6))


def _curve_rows(records: Sequence[ShardRecord]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for round_ in sorted({record.round for record in records}):
        names = [n for n in _first(records, round_).curve[0] if n not in ("iteration", "compete")]
        columns = {name: mean_curve(records, round_, name) for name in names}
        for index, iteration in enumerate(columns["total"][0]):
            values = {name: f"{columns[name][1][index]:.6g}" for name in names}
            rows.append({"round": round_, "iteration": int(iteration), **values})
    return rows


def _first(records: Sequence[ShardRecord], round_: int) -> ShardRecord:
    return next(record for record in records if record.round == round_)


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
