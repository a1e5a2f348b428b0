"""Every field has a docstring, and the comments of params.yaml are these docstrings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline.config.schema import Config

PARAMS = Path(__file__).parents[2] / "params.yaml"
KEY = re.compile(r"^( *)([a-z0-9_]+):")


def descriptions(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    """Every key, such as ``teacher.input.mean``, with the docstring of its field."""
    for name, field in model.model_fields.items():
        yield f"{path}{name}", " ".join((field.description or "").split())
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from descriptions(field.annotation, f"{path}{name}.")


def comments(path: Path) -> Iterator[tuple[str, str]]:
    """Every key of a parameter file with the comment above it."""
    sections: list[tuple[int, str]] = []
    lines: list[str] = []
    for line in path.read_text().splitlines():
        if line.lstrip().startswith("#"):
            lines.append(line.strip().removeprefix("# "))
        elif found := KEY.match(line):
            indent = len(found[1])
            sections = [*(one for one in sections if one[0] < indent), (indent, found[2])]
            yield ".".join(name for _, name in sections), " ".join(lines)
            lines = []
        else:
            lines = []


@pytest.mark.parametrize(("key", "text"), list(descriptions(Config)))
def test_every_field_has_a_docstring(key: str, text: str) -> None:
    assert re.fullmatch(r"[`A-Z0-9a-z].*[.]", text), key


def test_the_comments_of_the_parameter_file_are_the_docstrings() -> None:
    expected = {key: text.replace("``", "") for key, text in descriptions(Config)}
    found = dict(comments(PARAMS))
    explained = {key for key in expected if not key.startswith("adaptive.training")}
    assert {key: found[key] for key in explained} == {key: expected[key] for key in explained}
    assert found["adaptive.training"].startswith(expected["adaptive.training"])
    assert found.keys() == expected.keys()
