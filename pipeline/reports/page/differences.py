"""What differs between two runs: the figures of both, and of each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline.reports.page.checks import percent, points
from pipeline.reports.page.classes import ClassFacts
from pipeline.reports.page.figures import accuracies, find, interval, verdict
from pipeline.reports.page.run import Run
from pipeline.reports.page.sections import show_bytes
from pipeline.reports.page.template import NOTHING

_Part = TypeVar("_Part")


_MARKS = {
    "better": "B better",
    "worse": "B worse",
    "chance": "may be chance",
    "differs": "differs",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a table.

    Attributes:
        name: the name of the figure.
        a: its value in A, as text.
        b: its value in B, as text.
        difference: B less A, as text.
        state: ``better``, ``worse``, ``chance`` (the 95 % intervals overlap) or ``differs``: how B
            differs from A. Empty if both are the same.
    """

    name: str
    a: str
    b: str
    difference: str = ""
    state: str = ""

    @property
    def mark(self) -> str:
        """The state in a word or a sign, for readers who do not see its colour."""
        return _MARKS.get(self.state, "")


@dataclass(frozen=True, slots=True)
class _Measure:
    """How to find and show one figure of a run.

    Attributes:
        name: the name of the figure.
        value: finds it in a run; None if the run does not have it.
        show: turns it into text.
        better: 1 if more is better, -1 if less is better, else 0.
    """

    name: str
    value: Callable[[Run], float | None]
    show: Callable[[float], str]
    better: int = 0


def figures(a: Run, b: Run) -> list[Figure]:
    """The figures that at least one of the two runs has."""
    found = []
    for measure in _MEASURES:
        values = (measure.value(a), measure.value(b))
        if values != (None, None):
            figure = _figure(measure, *values)
            unsure = measure is _ACCURACY and figure.difference and may_be_chance(a, b)
            found.append(replace(figure, state="chance") if unsure else figure)
    levels = _both(a, b, lambda run: str(verdict(run).get("level", NOTHING)))
    if levels != (NOTHING, NOTHING):
        found.insert(0, Figure("verdict", *levels, "", "differs" if levels[0] != levels[1] else ""))
    return found


def may_be_chance(a: Run, b: Run) -> bool:
    """Whether the 95 % intervals of the students' accuracies on real images overlap."""
    first, second = find(accuracies(a), "student"), find(accuracies(b), "student")
    if not first or not second:
        return False
    return first.low <= second.high and second.low <= first.high


def _figure(measure: _Measure, first: float | None, second: float | None) -> Figure:
    shown = _both(first, second, lambda value: NOTHING if value is None else measure.show(value))
    if first is None or second is None or first == second:
        differs = first != second
        return Figure(measure.name, *shown, "", "differs" if differs else "")
    gap = second - first
    sign = "+" if gap > 0 else "\N{MINUS SIGN}"
    size = points(gap) if measure.show is percent else measure.show(abs(gap))
    state = "differs" if not measure.better else "better" if gap * measure.better > 0 else "worse"
    return Figure(measure.name, *shown, f"{sign}{size}", state)


def _both(a: _Part, b: _Part, show: Callable[[_Part], str]) -> tuple[str, str]:
    return show(a), show(b)


def _saved(part: str, name: str) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        found: float | None = getattr(run.saved, part).get(name)
        return found

    return value


def _speed(run: Run) -> float | None:
    made = run.saved.synthesis.get("made_now", {})
    return made["images"] / made["worker_seconds"] if made.get("worker_seconds") else None


def _last(run: Run, name: str) -> float | None:
    values = [
        curves[name][-1][1]
        for student, curves in run.saved.logs.items()
        if student.startswith("student-") and curves.get(name)
    ]
    return sum(values) / len(values) if values else None


def _total(run: Run) -> float | None:
    curves = run.tally.mean_curves()
    return float(curves[max(curves)]["total"][-1]) if curves else None


def _labels(part: Callable[[Run], float]) -> Callable[[Run], float | None]:
    return lambda run: part(run) / run.tally.images if run.tally.images and run.labelled else None


def _flawed(run: Run) -> float | None:
    return sum(run.tally.flaws.values()) / run.tally.images if run.tally.images else None


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _short(value: float) -> str:
    return f"{value:.4g}"


_ACCURACY = _Measure(
    "accuracy of the students", _saved("evaluation", "student_accuracy"), percent, 1
)
_MEASURES = (
    _ACCURACY,
    _Measure("accuracy of the teacher", _saved("evaluation", "teacher_accuracy"), percent),
    _Measure(
        "accuracy of the noise baseline", _saved("evaluation", "noise_baseline_accuracy"), percent
    ),
    _Measure(
        "accuracy of the procedural baseline",
        _saved("evaluation", "procedural_baseline_accuracy"),
        percent,
    ),
    _Measure("real images", _saved("evaluation", "real_images"), _number),
    _Measure(
        "agreement on new synthetic images",
        lambda run: run.saved.distillation.get("held_out", {}).get("agreement"),
        percent,
        1,
    ),
    _Measure("last loss of the students", lambda run: _last(run, "loss"), _short, -1),
    _Measure(
        "last agreement of the students in training",
        lambda run: _last(run, "agreement"),
        percent,
        1,
    ),
    _Measure("images", lambda run: run.tally.images or None, _number),
    _Measure(
        "labels that the teacher confirms", _labels(lambda run: run.tally.agreement), percent, 1
    ),
    _Measure("mean confidence of the teacher", _labels(lambda run: run.tally.confidence), percent),
    _Measure("flawed images", _flawed, percent, -1),
    _Measure("near-duplicates", _saved("measures", "near_duplicates"), percent, -1),
    _Measure("statistics gap", _saved("measures", "statistics_gap"), _short, -1),
    _Measure("total loss at the end", _total, _short),
    _Measure("images per second and worker", _speed, _short, 1),
    _Measure("bytes on disk", lambda run: run.tally.stored or None, show_bytes),
)


def class_figures(
    a: Sequence[ClassFacts], b: Sequence[ClassFacts]
) -> list[tuple[str, Figure | None, Figure]]:
    """For each class of both: its name, the students' accuracies and the teacher's confidences.

    The classes that differ most come first.
    """
    others = {facts.label: facts for facts in b}
    pairs = [(facts, others[facts.label]) for facts in a if facts.label in others]
    confidence = _Measure("confidence", lambda run: None, percent)
    pairs.sort(key=lambda pair: (-_gap(pair[0].student, pair[1].student),
                                 -_gap(pair[0].confidence, pair[1].confidence)))  # fmt: skip
    return [
        (
            first.name,
            _of_students(first, second)
            if (first.student, second.student) != (None, None)
            else None,
            _figure(confidence, first.confidence, second.confidence),
        )
        for first, second in pairs
    ]


def _gap(first: float | None, second: float | None) -> float:
    return 0.0 if first is None or second is None else abs(first - second)


def _of_students(first: ClassFacts, second: ClassFacts) -> Figure:
    """The students' accuracies on the images of a class, which are often few."""
    figure = _figure(_ACCURACY, first.student, second.student)
    same = first.student == second.student
    if same or first.student is None or second.student is None or not first.judged * second.judged:
        return figure
    low, high = interval(first.student, first.judged)
    other_low, other_high = interval(second.student, second.judged)
    overlap = low <= other_high and other_low <= high
    return replace(figure, state="chance") if overlap else figure
