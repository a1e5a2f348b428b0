"""A source of teachers is one class and one entry of the table; nothing else names the schemes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.params import parse_params
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.networks import build_network, factory_digest, public_source, weights_file
from pipeline.teachers.registry import FACTORY, SOURCES, find_source
from pipeline.teachers.source import Description, Source
from tests.conftest import Params

PIPELINE = Path(__file__).parents[2] / "pipeline"


class Shelf(Source):
    """A source as a contributor would add it."""

    form = "shelf:NAME"

    def build(self, name: str, arguments: Mapping[str, Any], weights: str | None, role: str) -> Any:
        if name != "small":
            raise UserError(f"{role}.source: the shelf has no {name}")
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))

    def describe(self, name: str, arguments: Mapping[str, Any], weights: str | None) -> Description:
        return Description(channels=3, height=2, width=2, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "shelf", Shelf())


def test_one_entry_adds_a_source(shelf: None, tiny: Params) -> None:
    section = {"source": "shelf:small", "weights": None}
    config = parse_params({**tiny, "teacher": section, "student": {"source": "shelf:small"}})
    assert (config.teacher.classes, config.preset) == (4, "without-batchnorm")
    assert load_checked_teacher(config).shape == (3, 2, 2)
    assert public_source("shelf:small") == "shelf:small"
    assert factory_digest("shelf:small", "teacher") is None


def test_the_errors_of_a_new_source_name_it(shelf: None) -> None:
    with pytest.raises(UserError, match="the shelf has no large"):
        build_network("shelf:large", {}, "student")
    with pytest.raises(UserError, match="or `shelf:NAME`"):
        build_network("nothing", {}, "student")
    with pytest.raises(UserError, match="publishes no weights"):
        weights_file("shelf:small", "pretrained", "teacher")


def test_a_scheme_that_no_source_has_is_a_factory() -> None:
    assert find_source("module:factory") == (FACTORY, "module:factory")
    assert find_source("timm:resnet18") == (SOURCES["timm"], "resnet18")


def texts(path: Path) -> Iterator[str]:
    """The strings of a module, but for its docstrings."""
    tree = ast.parse(path.read_text())
    loose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in loose:
            yield node.value


def test_no_other_module_names_a_scheme() -> None:
    schemes = SOURCES.keys() - {"memory"}  # also the name of a file system
    owners = {Path(inspect.getfile(type(source))) for source in SOURCES.values()}
    owners.add(PIPELINE / "teachers" / "registry.py")
    # `hub` is a format of `export` too.
    owners |= {PIPELINE / name for name in ("exporting/formats.py", "reader_options.py")}
    naming = {
        path.relative_to(PIPELINE)
        for path in PIPELINE.rglob("*.py")
        for text in texts(path)
        if path not in owners
        and (text in schemes or any(text.startswith(f"{scheme}:") for scheme in schemes))
    }
    assert naming == set()
