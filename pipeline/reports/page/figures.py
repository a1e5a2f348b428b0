"""The figures of a run's students: accuracy, spread over the seeds, and 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.reports.files import BASELINE_TEXTS
from pipeline.reports.page.run import Run

_Z = 1.96  # of the 95 % interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """The accuracy of one model on the real images, or of several seeds.

    Attributes:
        name: what the reader calls it.
        kind: ``teacher``, ``student``, ``noise`` or ``procedural``.
        value: the accuracy, or the mean over the seeds.
        low: the lower end of the 95 % interval of an accuracy on so many images.
        high: its upper end.
        seeds: the accuracy of each seed; empty where there is one network only.
    """

    name: str
    kind: str
    value: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentFacts:
    """One student. Values are None where nobody measured them."""

    name: str
    kind: str
    accuracy: float | None
    held_out: float | None
    steps: float | None
    loss: float | None
    agreement: float | None


def accuracies(run: Run) -> list[Accuracy]:
    """The accuracies on real images, from the teacher to the weakest baseline."""
    report = run.saved.evaluation
    if "teacher_accuracy" not in report:
        return []
    images = int(report["real_images"])

    def of(name: str, kind: str, value: float, seeds: Sequence[float] = ()) -> Accuracy:
        low, high = interval(value, images)
        return Accuracy(name=name, kind=kind, value=value, low=low, high=high, seeds=tuple(seeds))

    found = [of("Teacher", "teacher", report["teacher_accuracy"])]
    if "student_accuracy" in report:
        seeds = list(report["student_accuracies"].values())
        name = f"Student, mean of {len(seeds)} seeds" if len(seeds) > 1 else "Student, one seed"
        found.append(of(name, "student", report["student_accuracy"], seeds))
    for kind, text in BASELINE_TEXTS.items():
        if f"{kind}_baseline_accuracy" in report:
            name = f"The same student, trained on {text.partition(' that')[0]}"
            found.append(of(name, kind, report[f"{kind}_baseline_accuracy"]))
    return [found[0], *sorted(found[1:], key=lambda each: -each.value)]


def find(found: Sequence[Accuracy], kind: str) -> Accuracy | None:
    """The accuracy of that kind, or None."""
    return next((each for each in found if each.kind == kind), None)


def interval(share: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was counted on ``images`` images."""
    middle = (share + _Z**2 / (2 * images)) / (1 + _Z**2 / images)
    reach = _Z / (1 + _Z**2 / images)
    reach *= math.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def students(run: Run) -> list[StudentFacts]:
    """Every student and baseline that was trained, in the order of the reports."""
    evaluation, held_out = run.saved.evaluation, run.saved.distillation.get("held_out", {})
    found = []
    for name, curves in run.saved.logs.items():
        kind, _, seed = name.rpartition("-")
        if kind == "student":
            accuracy = evaluation.get("student_accuracies", {}).get(seed)
        else:
            accuracy = evaluation.get(f"{kind}_baseline_accuracy")
        found.append(
            StudentFacts(
                name=student_name(name),
                kind=kind,
                accuracy=accuracy,
                held_out=held_out.get("agreements", {}).get(seed) if kind == "student" else None,
                steps=_last(curves, "step"),
                loss=_last(curves, "loss"),
                agreement=_last(curves, "agreement"),
            )
        )
    return found


def student_name(name: str) -> str:
    """What the reader calls the student of a file such as ``student-0``."""
    kind, _, seed = name.rpartition("-")
    texts = {"student": f"seed {seed}", "procedural": "procedural pictures (baseline)"}
    return texts.get(kind, f"{kind} (baseline)")


def _last(curves: Any, name: str) -> float | None:
    if name == "step":
        return next((curve[-1][0] for curve in curves.values() if curve), None)
    curve = curves.get(name)
    return float(curve[-1][1]) if curve else None


def verdict(run: Run) -> dict[str, Any]:
    """The verdict of ``measure``, else that of ``synthesize``. Empty if neither left a report."""
    reports = (run.saved.measures, run.saved.synthesis)
    found: list[dict[str, Any]] = [each["verdict"] for each in reports if "verdict" in each]
    return found[0] if found else {}
