"""The page of two runs next to each other: the same tables and pictures, differences marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.reports.page.checks import percent, points
from pipeline.reports.page.classes import ClassFacts, class_facts
from pipeline.reports.page.differences import Figure, class_figures, figures, may_be_chance
from pipeline.reports.page.figures import accuracies, find, verdict
from pipeline.reports.page.gallery import Gallery, choose_classes, make_gallery, merge_tables
from pipeline.reports.page.run import Run
from pipeline.reports.page.sections import (
    confusions,
    learning_charts,
    loss_charts,
    provenance_lines,
)
from pipeline.reports.page.template import NOTHING, render, show_value
from pipeline.reports.page.thumbnails import MOST_BYTES

MOST_CLASS_ROWS = 200
MOST_CLASSES, MOST_IMAGES, DISTRUSTED = 12, 80, 12  # of each run
FIRST_SEEDS = 2  # students of each run in the learning curves


def render_comparison(a: Run, b: Run) -> bytes:
    """The page of two runs, as HTML."""
    both = (("A", a), ("B", b))
    facts = [class_facts(run) if run.dataset is not None else [] for run in (a, b)]
    if a.saved.judged != b.saved.judged:  # students judged on other images cannot be compared
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
        if may_be_chance(a, b):
            return f"{text}: a difference of {points(gap)} that may be chance."
        return f"{text}: B is {points(gap)} {'better' if gap > 0 else 'worse'}."
    levels = [verdict(run).get("level") for run in (a, b)]
    if all(levels):
        return f"The images of A look {levels[0]}, those of B {levels[1]}."
    return "A and B next to each other."


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
