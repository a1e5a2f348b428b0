"""Two runs next to each other: what differs is marked, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipeline.reports.page.classes import class_facts
from pipeline.reports.page.comparison import (
    comparison_headline,
    parameters,
    render_comparison,
)
from pipeline.reports.page.differences import class_figures, figures
from pipeline.reports.page.run import Run
from pipeline.reports.page.saved import Saved
from tests.reports.page.conftest import CONFUSION, EVALUATION, LOGS
from tests.reports.page.test_checks import plain
from tests.reports.page.test_page import Reader, rows_in


def better(run: Run) -> Run:
    evaluation = {**EVALUATION, "student_accuracy": 0.94}
    confusion = {**CONFUSION, "student-0": {(1, 1): 50}, "student-1": {(1, 1): 50}}
    saved = replace(run.saved, evaluation=evaluation, confusion=confusion)
    changed = {**run.parameters, "synthesis.iterations": 9}
    return replace(run, name="B", saved=saved, parameters=changed)


def test_figures_say_which_is_better(full: Run) -> None:
    found = {each.name: each for each in figures(full, better(full))}
    accuracy = found["accuracy of the students"]
    assert (plain(accuracy.a), plain(accuracy.b)) == ("90.0 %", "94.0 %")
    assert (accuracy.difference, accuracy.mark) == ("+4.0 points", "B better")
    assert found["images"].state == "" and found["verdict"].state == ""
    back = {each.name: each for each in figures(better(full), full)}
    assert back["accuracy of the students"].mark == "B worse"


def test_the_headline_tells_chance_from_a_difference(full: Run) -> None:
    assert comparison_headline(full, better(full)).endswith("B is 4.0 points better.")
    close = replace(full.saved, evaluation={**EVALUATION, "student_accuracy": 0.905})
    assert "may be chance" in comparison_headline(full, replace(full, saved=close))


def test_a_difference_within_chance_is_no_worse(full: Run) -> None:
    close = replace(full.saved, evaluation={**EVALUATION, "student_accuracy": 0.895})
    found = {each.name: each for each in figures(full, replace(full, saved=close))}
    assert found["accuracy of the students"].mark == "may be chance"
    few = {**CONFUSION, "student-0": {(1, 1): 42, (1, 2): 8}}
    run = replace(full, saved=replace(full.saved, confusion=few))
    students = [each for _, each, _ in class_figures(class_facts(full), class_facts(run)) if each]
    assert "may be chance" in {each.mark for each in students if each.name and each.difference}


def test_only_parameters_that_differ_are_listed(full: Run) -> None:
    (each,) = parameters(full, better(full))
    assert (each.name, each.a, each.b) == ("synthesis.iterations", "4", "9")


def test_the_class_that_differs_most_comes_first(full: Run) -> None:
    found = class_figures(class_facts(full), class_facts(better(full)))
    name, student, _ = found[0]
    assert name == "middle" and student is not None
    assert (student.difference, student.mark) == ("+18.0 points", "B better")


def test_the_page_shows_the_same_places_of_both(full: Run) -> None:
    page = render_comparison(full, better(full)).decode()
    reader = Reader(page)
    table = rows_in(page)
    numbers = [int(a["data-row"] or -1) for tag, a in reader.tags if "data-row" in a]
    assert set(numbers) == set(range(len(table["rows"])))
    keys = [row[0] for row in table["rows"]]
    half = len(keys) // 2
    assert keys[:half] == keys[half:]
    assert 'class="marked"' in page and "A round" not in page
    assert len(page) < 3_000_000


def test_students_alone_are_compared_by_their_curves(
    with_reports: Callable[..., Run],
) -> None:
    alone = [
        Run(
            name=name,
            parameters={"training.steps": steps},
            saved=Saved(logs={"student-0": LOGS["student-0"]}),
        )
        for name, steps in (("a/student-0", 6), ("b/student-0", 9))
    ]
    page = render_comparison(*alone).decode()
    reader = Reader(page)
    assert "A seed 0" in reader.text and "B seed 0" in reader.text
    assert "training.steps" in reader.text
    assert 'id="images"' not in page and 'id="provenance"' not in page
