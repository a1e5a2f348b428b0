"""Fill in the templates of the page."""

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
from pipeline.reports.page.checks import percent

TEMPLATES = Path(__file__).parents[2] / "templates" / "report"
NOTHING = "–"  # noqa: RUF001


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
