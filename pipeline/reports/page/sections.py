"""The data of the page's figures and tables, in the form that the template needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.dataset.layout import PROVENANCE
from pipeline.objective.terms import TERMS
from pipeline.quantities import show_seconds
from pipeline.reports.page.charts import Line, line_chart
from pipeline.reports.page.classes import TEACHER, matrix, student_answers, worst_pairs
from pipeline.reports.page.figures import student_name
from pipeline.reports.page.run import Run
from pipeline.reports.page.saved import Curve

MOST_LABELS = 20  # of a confusion matrix that is drawn
SMOOTHED = 20  # each point of a learning curve is the mean of 1 / SMOOTHED of its points
ABOUT = {
    "classification": "Cross-entropy of the teacher's answer and the intended class",
    "tv": "Total variation: differences of neighbouring pixels",
    "l2": "Norm of the image",
    "feature": "Distance of the batch's statistics to those of the teacher's BatchNorm layers",
    "compete": "High where teacher and round student agree",
}
BINS = ((0.0, "below 50 %"), (0.5, "50 to 90 %"), (0.9, "90 to 99 %"), (0.99, "99 % and more"))


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its title, its caption and the names of its lines."""

    title: str
    caption: str
    svg: Markup
    legend: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """The answers of a model: a matrix, and the worst pairs in words."""

    name: str
    labels: Sequence[str]
    cells: Sequence[Sequence[float]]
    pairs: Sequence[str]


def loss_charts(runs: Sequence[tuple[str, Run]]) -> list[Chart]:
    """One chart for each term of the objective, with a line for each run and round."""
    about = {term.name: ABOUT.get(term.name, term.description) for term in TERMS}
    about["total"] = "The weighted sum of all terms, which the optimisation lowers"
    names: dict[str, list[Line]] = {}
    for prefix, run in runs:
        curves = run.tally.mean_curves()
        for round_, curve in sorted(curves.items()):
            label = f"{prefix} round {round_}".strip() if len(curves) > 1 else prefix or "loss"
            for name in ("total", *about):
                if name in curve:
                    points = list(
                        zip(curve["iteration"].tolist(), curve[name].tolist(), strict=True)
                    )
                    lines = names.setdefault(name, [])
                    if all(line.name != label for line in lines):
                        lines.append(Line(label, points))
    return [
        _chart(name, _with_weight(name, about[name], runs), "iteration", lines)
        for name, lines in names.items()
        if any(len(line.points) > 1 for line in lines)
    ]


def _with_weight(name: str, about: str, runs: Sequence[tuple[str, Run]]) -> str:
    """The caption of a term, with its weight in the objective where the provenance states it."""
    weights = []
    for prefix, run in runs:
        definition = run.provenance.get("definition", {})
        objective = definition.get("externalParameters", {}).get("objective", {})
        if name in objective:
            weights.append(f"{prefix} weight {objective[name]:g}".strip())
    return f"{about} ({', '.join(weights)})" if weights else about


def learning_charts(runs: Sequence[tuple[str, Run]], most_seeds: int | None = None) -> list[Chart]:
    """Loss, agreement and accuracy over the steps, with a line for each student.

    Args:
        runs: a prefix for the names of the lines, and the run.
        most_seeds: show only so many students of a run, and no baselines. None shows all.
    """
    captions = {
        "loss": "The loss that the training lowers",
        "agreement": "Share of a batch that student and teacher classify alike",
        "accuracy": "Share of a batch whose labels the student predicts",
    }
    found = []
    for name, caption in captions.items():
        lines = [
            Line(f"{prefix} {student_name(student)}".strip(), smooth(curves[name]))
            for prefix, run in runs
            for student, curves in _chosen_logs(run, most_seeds)
            if name in curves
        ]
        if lines:
            found.append(_chart(name, caption, "step", lines, share=name != "loss"))
    return [chart for chart in found if chart.svg]


def _chosen_logs(run: Run, most: int | None) -> list[tuple[str, Mapping[str, Curve]]]:
    logs = list(run.saved.logs.items())
    if most is None:
        return logs
    return [(name, curves) for name, curves in logs if name.startswith("student-")][:most]


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The running mean of a curve. Each point is the mean of the points near it."""
    reach = len(points) // SMOOTHED // 2
    values = [value for _, value in points]
    found = []
    for number, (x, _) in enumerate(points):
        near = values[max(0, number - reach) : number + reach + 1]
        found.append((x, sum(near) / len(near)))
    return found


def _chart(
    title: str, caption: str, x_title: str, lines: Sequence[Line], share: bool = False
) -> Chart:
    legend = tuple(line.name for line in lines) if len(lines) > 1 else ()
    return Chart(title, caption, line_chart(title, x_title, lines, share), legend)


def confidence_bins(run: Run) -> list[tuple[str, int, float]]:
    """How many images have a confidence in each range: its name, the number, the share.

    Without labels there are no ranges.
    """
    if not run.labelled:
        return []
    assert run.rows is not None
    values = run.rows.confidence
    edges = [edge for edge, _ in BINS] + [np.inf]
    counts, _ = np.histogram(values[np.isfinite(values)], bins=np.array(edges))
    total = max(1, len(values))
    return [
        (name, int(count), int(count) / total)
        for (_, name), count in zip(BINS, counts, strict=True)
    ]


def confusions(run: Run) -> list[Confusion]:
    """The confusion of the teacher and of the students, on the images of ``Saved.judged``."""
    found = []
    seeds = [name for name in run.saved.confusion if name.startswith("student-")]
    students = student_name(seeds[0]) if len(seeds) == 1 else "all seeds together"
    for name, answers in (
        ("Teacher", run.saved.confusion.get(TEACHER, {})),
        (f"Student{'s' if len(seeds) > 1 else ''}, {students}", student_answers(run)),
    ):
        if not answers:
            continue
        labels = sorted({label for pair in answers for label in pair})
        totals: dict[int, int] = {}
        for (true, _), count in answers.items():
            totals[true] = totals.get(true, 0) + count
        small = len(labels) <= MOST_LABELS
        found.append(
            Confusion(
                name=name,
                labels=[run.class_name(label) for label in labels] if small else [],
                cells=matrix(answers, labels) if small else [],
                pairs=[
                    f"{run.class_name(true)} taken for {run.class_name(given)}: {count:,} of "
                    f"{totals[true]:,}"
                    for true, given, count in worst_pairs(answers)
                ],
            )
        )
    return found


def rounds(run: Run) -> list[dict[str, Any]]:
    """The facts of each round of Adaptive DeepInversion; empty where there is one round only."""
    rows = run.rows
    assert rows is not None
    numbers = np.unique(rows.round)
    if len(numbers) < 2:
        return []
    found = []
    for number in numbers.tolist():
        here = rows.round == number
        known = here & (rows.student >= 0)
        found.append(
            {
                "round": number,
                "images": run.tally.round_images[number],
                "confirmed": float(rows.confirmed[here].mean()),
                "confidence": float(rows.confidence[here].mean()),
                "divergence": float(rows.divergence[known].mean()) if known.any() else None,
                "fooled": (
                    float((rows.student[known] != rows.label[known]).mean())
                    if known.any()
                    else None
                ),
            }
        )
    return found


def cost(run: Run) -> list[tuple[str, str]]:
    """What the run cost: pairs of a name and a text."""
    lines = []
    made = run.saved.synthesis.get("made_now", {})
    if made.get("images") and made.get("worker_seconds"):
        images, seconds = made["images"], made["worker_seconds"]
        lines += [
            ("Images of the last run", f"{images:,} in {show_seconds(seconds)} of one worker"),
            ("Speed", f"{images / seconds:.3g} images per second and worker"),
        ]
    elif run.saved.synthesis:
        lines.append(("Images of the last run", "none: all shards were complete already"))
    trained = run.saved.distillation.get("made_now", {})
    if trained.get("students"):
        seconds = show_seconds(trained["worker_seconds"])
        text = f"{trained['students']} in {seconds} of one worker"
        lines.append(("Students of the last run", text))
    elif run.saved.distillation:
        lines.append(("Students of the last run", "none: all students were complete already"))
    stored, images = run.tally.stored, max(1, run.tally.images)
    lines.append(
        ("Dataset on disk", f"{show_bytes(stored)}, {show_bytes(stored / images)} an image")
    )
    return lines


def show_bytes(size: float) -> str:
    """A number of bytes with a unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def measure_lines(run: Run) -> list[tuple[str, str]]:
    """The measures of the dataset, by the names of ``measures.json``."""
    return [
        (name, f"{value:g}")
        for name, value in run.saved.measures.items()
        if isinstance(value, int | float)
    ]


def provenance_lines(run: Run) -> list[tuple[str, str]]:
    """Digests and versions: pairs of a name and a text."""
    definition: Mapping[str, Any] = run.provenance.get("definition", {})
    lines = []
    for part in definition.get("resolvedDependencies", ()):
        lines.append((f"SHA-256 of {part['name']} {part['uri']}", part["digest"]["sha256"]))
        licence = part.get("annotations", {}).get("license")
        if licence:
            lines.append((f"Licence of {part['name']}", licence))
    if run.digest:
        lines.append((f"SHA-256 of {PROVENANCE}, which names every file", run.digest))
    lines.append(("Signature", "signed" if run.signed else "unsigned"))
    internal = definition.get("internalParameters", {})
    if internal:
        lines.append(("SHA-256 of the code", internal["code"]))
    for versions in internal.get("versions", ()):
        text = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(("Versions", text))
    return lines
