"""The page of two runs next to each other: the same tables and pictures, differences marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pipeline.reports.page.checks import percent, points
from pipeline.reports.page.classes import ClassFacts, class_facts
from pipeline.reports.page.figures import Accuracy, accuracies, find, verdict
from pipeline.reports.page.gallery import Gallery, choose_classes, make_gallery, merge_tables
from pipeline.reports.page.run import Run
from pipeline.reports.page.sections import (
    confusions,
    learning_charts,
    loss_charts,
    provenance_lines,
    show_bytes,
)
from pipeline.reports.page.template import NOTHING, render, show_value
from pipeline.reports.page.thumbnails import MOST_BYTES

_Part = TypeVar("_Part")
MOST_CLASS_ROWS = 200
MOST_CLASSES, MOST_IMAGES, DISTRUSTED = 12, 80, 12  # of each of the two
FIRST_SEEDS = 2  # students of each of the two in the learning curves


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a table: the values of A and B, their difference, and how B differs from A.

    ``state`` is ``better``, ``worse`` or ``differs``, and empty where A and B are the same.
    """

    name: str
    a: str
    b: str
    difference: str = ""
    state: str = ""

    @property
    def mark(self) -> str:
        """The state in a word or a sign, for readers who do not see its colour."""
        return {"better": "B better", "worse": "B worse", "differs": "differs"}.get(self.state, "")


@dataclass(frozen=True, slots=True)
class _Measure:
    """A figure of a run: its name, its value, its form, and whether more is better (1), worse (-1)
    or neither (0)."""

    name: str
    value: Callable[[Run], float | None]
    show: Callable[[float], str]
    better: int = 0


def render_comparison(a: Run, b: Run) -> bytes:
    """The page of two runs, as HTML."""
    both = (("A", a), ("B", b))
    facts = [class_facts(run) if run.dataset is not None else [] for run in (a, b)]
    if a.saved.judged != b.saved.judged:  # students on other kinds of images compare with nothing
        facts = [[replace(each, student=None) for each in classes] for classes in facts]
    galleries = _galleries(a, b, facts)
    return render(
        "compare.html",
        a=a,
        b=b,
        headline=comparison_headline(a, b),
        figures=figures(a, b),
        parameters=parameters(a, b),
        same_parameters=_same(a, b),
        accuracies=(accuracies(a), accuracies(b)),
        galleries=galleries,
        classes=class_figures(*facts)[:MOST_CLASS_ROWS],
        losses=loss_charts(both) if galleries else [],
        learning=learning_charts(both, FIRST_SEEDS),
        confusions=(confusions(a)[-1:], confusions(b)[-1:]),
        provenance=_provenance(a, b) if galleries else [],
        table=(
            merge_tables([each.table for each in galleries])
            if galleries
            else {"columns": [], "about": [], "rows": []}
        ),
    )


def comparison_headline(a: Run, b: Run) -> str:
    """Which of the two students is better, or what else can be said."""
    first, second = find(accuracies(a), "student"), find(accuracies(b), "student")
    if first and second:
        gap = second.value - first.value
        text = f"The students of A reach {percent(first.value)}, those of B {percent(second.value)}"
        if gap == 0:
            return f"{text}."
        if _overlap(first, second):
            return f"{text}: a difference of {points(gap)} that may be chance."
        return f"{text}: B is {points(gap)} {'better' if gap > 0 else 'worse'}."
    levels = [verdict(run).get("level") for run in (a, b)]
    if all(levels):
        return f"The images of A look {levels[0]}, those of B {levels[1]}."
    return "A and B next to each other."


def _overlap(first: Accuracy, second: Accuracy) -> bool:
    return first.low <= second.high and second.low <= first.high


def figures(a: Run, b: Run) -> list[Figure]:
    """The figures that at least one of the two runs has."""
    found = []
    for measure in _MEASURES:
        values = (measure.value(a), measure.value(b))
        if values != (None, None):
            found.append(_figure(measure, *values))
    levels = _both(a, b, lambda run: str(verdict(run).get("level", NOTHING)))
    if levels != (NOTHING, NOTHING):
        found.insert(0, Figure("verdict", *levels, "", "differs" if levels[0] != levels[1] else ""))
    return found


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


_MEASURES = (
    _Measure("accuracy of the students", _saved("evaluation", "student_accuracy"), percent, 1),
    _Measure("accuracy of the teacher", _saved("evaluation", "teacher_accuracy"), percent),
    _Measure("... of a student of noise", _saved("evaluation", "noise_baseline_accuracy"), percent),
    _Measure(
        "... of a student of procedural pictures",
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
    _Measure("images a second and worker", _speed, _short, 1),
    _Measure("bytes on disk", lambda run: run.tally.stored or None, show_bytes),
)


def parameters(a: Run, b: Run) -> list[Figure]:
    """The parameters that differ, of the sections that both runs state."""
    shared = {_section(key) for key in a.parameters} & {_section(key) for key in b.parameters}
    names = sorted({*a.parameters, *b.parameters})
    return [
        Figure(name, _value(a.parameters, name), _value(b.parameters, name), "", "differs")
        for name in names
        if _section(name) in shared and a.parameters.get(name) != b.parameters.get(name)
    ]


def _same(a: Run, b: Run) -> int:
    return sum(b.parameters.get(name) == value for name, value in a.parameters.items())


def _section(name: str) -> str:
    return name.partition(".")[0]


def _value(values: Mapping[str, Any], name: str) -> str:
    return show_value(values[name]) if name in values else "not set"


def class_figures(
    a: Sequence[ClassFacts], b: Sequence[ClassFacts]
) -> list[tuple[str, Figure | None, Figure]]:
    """For each class of both: its name, the students' accuracies and the teacher's confidences.

    The classes that differ most come first.
    """
    others = {facts.label: facts for facts in b}
    pairs = [(facts, others[facts.label]) for facts in a if facts.label in others]
    accuracy = _Measure("accuracy", lambda run: None, percent, 1)
    confidence = _Measure("confidence", lambda run: None, percent)
    pairs.sort(key=lambda pair: (-_gap(pair[0].student, pair[1].student),
                                 -_gap(pair[0].confidence, pair[1].confidence)))  # fmt: skip
    return [
        (
            first.name,
            _figure(accuracy, first.student, second.student)
            if (first.student, second.student) != (None, None)
            else None,
            _figure(confidence, first.confidence, second.confidence),
        )
        for first, second in pairs
    ]


def _gap(first: float | None, second: float | None) -> float:
    return 0.0 if first is None or second is None else abs(first - second)


def _galleries(a: Run, b: Run, facts: Sequence[Sequence[ClassFacts]]) -> list[Gallery]:
    """The same classes of both runs; nothing where a run has no dataset."""
    if a.dataset is None or b.dataset is None:
        return []
    labels = [each.label for each in choose_classes(facts[0], MOST_CLASSES)]
    found: list[Gallery] = []
    for run, classes in zip((a, b), facts, strict=True):
        chosen = [each for label in labels for each in classes if each.label == label]
        first = sum(len(gallery.table["rows"]) for gallery in found)
        found.append(
            make_gallery(run, chosen, len(classes), MOST_IMAGES, DISTRUSTED, MOST_BYTES // 2, first)
        )
    return found


def _provenance(a: Run, b: Run) -> list[Figure]:
    first, second = dict(provenance_lines(a)), dict(provenance_lines(b))
    return [
        Figure(
            name,
            first.get(name, NOTHING),
            second.get(name, NOTHING),
            "",
            "differs" if first.get(name) != second.get(name) else "",
        )
        for name in dict.fromkeys([*first, *second])
    ]
