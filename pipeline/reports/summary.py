"""The result of a run in a few lines of text."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.evaluation.held_out import describe_held_out
from pipeline.reports.files import BASELINE_TEXTS, PAGE
from pipeline.synthesis.outputs import GRIDS


def summarise(config: Config) -> str:
    """Summarise a run in a few lines, from its reports.

    Raises:
        UserError: There is no report of a synthesis.
    """
    reports = Path(config.paths.reports)
    page = reports / PAGE
    if not (reports / "synthesis.json").is_file():
        raise UserError(f"paths.reports {reports} has no synthesis.json: run synthesize first")
    synthesis = json.loads((reports / "synthesis.json").read_bytes())
    lines = [
        f"dataset    {synthesis['images']} images, {synthesis['classes'] or 'no'} classes, "
        f"{synthesis['shards']} shards in {config.paths.dataset}/",
    ]
    if "teacher_agreement" in synthesis:
        confirmed = synthesis["teacher_agreement"]
        lines.append(f"labels     {confirmed:.1%} confirmed by the teacher")
    if "verdict" in synthesis:
        level, reasons = (synthesis["verdict"][key] for key in ("level", "reasons"))
        why = "" if level == "usable" else f": {'; '.join(reasons)}"
        lines.append(f"images     look {level}{why}")
    if config.evaluation.data is not None and (reports / "evaluation.json").is_file():
        result = json.loads((reports / "evaluation.json").read_bytes())
        lines.append(
            f"teacher    {result['teacher_accuracy']:.1%} on {result['real_images']} real images"
        )
        if "student_accuracies" in result:
            seeds = ", ".join(f"{value:.1%}" for value in result["student_accuracies"].values())
            lines.append(
                f"student    {result['student_accuracy']:.1%} (mean of {seeds}), "
                "trained without real images"
            )
        lines += [
            f"{kind:<10} {result[f'{kind}_baseline_accuracy']:.1%}, the same student trained on "
            f"{text}"
            for kind, text in BASELINE_TEXTS.items()
            if f"{kind}_baseline_accuracy" in result
        ]
    if config.evaluation.data is None and (reports / "distillation.json").is_file():
        trained = json.loads((reports / "distillation.json").read_bytes())
        if "held_out" in trained:
            lines.append(f"student    {describe_held_out(trained['held_out'])}")
    if config.teacher.labelled:
        lines.append(f"students   {config.paths.students}/")
    lines.append(f"look at    {page if page.is_file() else reports / GRIDS / 'round-0.png'}")
    return "\n".join(lines)
