"""The page of one run, as HTML."""

from __future__ import annotations

from pipeline.reports.page.advice import advice
from pipeline.reports.page.checks import checks, headline
from pipeline.reports.page.classes import class_facts
from pipeline.reports.page.figures import accuracies, students, verdict
from pipeline.reports.page.gallery import choose_classes, make_gallery
from pipeline.reports.page.loading import loading_code, network_lines, student_code
from pipeline.reports.page.run import Run
from pipeline.reports.page.sections import (
    confidence_bins,
    confusions,
    cost,
    learning_charts,
    loss_charts,
    measure_lines,
    provenance_lines,
    rounds,
)
from pipeline.reports.page.template import render
from pipeline.reports.page.thumbnails import data_uri

MOST_CLASS_ROWS = 1000  # of the table of classes


def render_run(run: Run) -> bytes:
    """The page of one run, as HTML."""
    classes = class_facts(run)
    gallery = make_gallery(run, choose_classes(classes), len(classes))
    alike = run.saved.alike
    return render(
        "run.html",
        run=run,
        headline=headline(run),
        verdict=verdict(run),
        checks=checks(run, classes),
        advice=advice(run, classes),
        accuracies=accuracies(run),
        gallery=gallery,
        classes=classes[:MOST_CLASS_ROWS],
        class_count=len(classes),
        confidence=confidence_bins(run),
        alike=None if alike is None else data_uri(alike),
        students=students(run),
        learning=learning_charts([("", run)]),
        losses=loss_charts([("", run)]),
        confusions=confusions(run),
        rounds=rounds(run),
        cost=cost(run),
        measures=measure_lines(run),
        provenance=provenance_lines(run),
        networks=network_lines(run),
        loading=loading_code(run),
        student_code=student_code(run),
        table=gallery.table,
    )
