"""Write the page of one run: ``index.html`` in its reports."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline import __version__
from pipeline.config.schema import Config
from pipeline.reports.page.advice import advice
from pipeline.reports.page.checks import checks, headline, percent
from pipeline.reports.page.classes import class_facts
from pipeline.reports.page.figures import accuracies, students, verdict
from pipeline.reports.page.gallery import choose_classes, make_gallery
from pipeline.reports.page.run import Run, run_of_config
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
from pipeline.reports.page.thumbnails import data_uri
from pipeline.storage import write_bytes
from pipeline.synthesis.outputs import claim_output

TEMPLATES = Path(__file__).parents[2] / "templates" / "report"
INDEX = "index.html"
NOTHING = "–"  # noqa: RUF001
MOST_CLASS_ROWS = 1000  # of the table of classes


def write_page(config: Config, verify: str = "dreamshard verify") -> Path:
    """Write ``index.html`` into ``paths.reports``, from the records and reports that exist.

    Args:
        config: the parameters of the run.
        verify: the command that verifies the dataset, which the page quotes.

    Returns:
        The page.

    Raises:
        UserError: no shard is complete, or a report or a shard is damaged.
    """
    run = run_of_config(config, "", verify)
    claim_output(config, "reports")
    path = Path(config.paths.reports) / INDEX
    write_bytes(path, render_run(run))
    return path


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
        table=gallery.table,
    )


def render(template: str, **values: Any) -> bytes:
    """Fill in a template of :data:`TEMPLATES`. Every text is escaped."""
    page: str = _environment().get_template(template).render(**values)
    return page.encode()


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "style": Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_digest": digest,
        "version": __version__,
    }
    environment.filters |= {
        "percent": _percent,
        "whole": _whole,
        "value": show_value,
    }
    return environment


def _percent(share: float | None) -> str:
    return NOTHING if share is None else percent(share)


def _whole(number: int) -> str:
    return f"{number:,}"


def show_value(value: Any) -> str:
    """A parameter as YAML writes it, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {show_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(show_value(each) for each in value) + "]"
    return str(value)
