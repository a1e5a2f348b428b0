"""The digest of a factory covers what it can depend on, and no unrelated function of its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.source_digest import source_digest
from pipeline.teachers.networks import factory_digest
from pipeline.teachers.used_code import used_digest

FILE = '''"""Networks."""

from functools import partial

import torch
from torch import nn

__all__ = ["classifier", "unrelated"]
__version__ = "1"
WIDTH = 8
KINDS = {"small": partial(nn.Conv2d, 1)}


class Block(nn.Module):
    """A block."""

    kind = "small"

    @property
    def width(self) -> int:
        return scaled(WIDTH)

    def forward(self, x):
        return x + 1


class Big(Block):
    def forward(self, x: "torch.Tensor"):
        return x + 2


def scaled(width):
    return 2 * width


def size(factor=WIDTH):
    return factor


def traced(function):
    return function


@traced
def decorated():
    return 3


def classifier(classes: int = 3) -> nn.Module:
    """Build the network."""
    return nn.Sequential(Block(), nn.Linear(size(), classes))


def unrelated(path):
    return classifier(path)


class Other(Big):
    """Nobody uses it."""

    def forward(self, x):
        return x - 1


if __name__ == "__main__":
    print(unrelated(4))
'''


def digest(text: str, name: str = "classifier", module: str = "nets") -> str:
    return used_digest(text, module, {name})


def edited(old: str, new: str, text: str = FILE) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


def whole(text: str, tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(text)
    return source_digest([tmp_path / "nets.py"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return classifier(path)", "return classifier(path + 1)"),
        ("def unrelated(path):", "def renamed(path, more=WIDTH):"),
        ("return x - 1", "return x - 2"),
        ("return x + 2", "return x + 3"),
        ("print(unrelated(4))", "print(unrelated(5))"),
        ('"""A block."""', '"""A block of the network."""'),
        ("WIDTH = 8", "WIDTH = 8  # a comment"),
        ("\n\ndef scaled", "\n\ndef added():\n    return globals()\n\n\ndef scaled"),
    ],
)
def test_what_a_factory_does_not_use_keeps_its_digest(old: str, new: str) -> None:
    assert digest(edited(old, new)) == digest(FILE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("classes: int = 3", "classes: int = 4"),  # the factory's default argument
        ("nn.Linear(size(), classes)", "nn.Linear(size(), classes, False)"),
        ("return factor", "return factor + 1"),  # a function that the factory calls
        ("return 2 * width", "return 3 * width"),  # a function that a method of its class calls
        ("return x + 1", "return x + 4"),  # a method
        ("    @property\n", ""),
        ('kind = "small"', 'kind = "large"'),
        ("class Block(nn.Module)", "class Block(nn.Sequential)"),
        ("factor=WIDTH", "factor=9"),
        ("WIDTH = 8", "WIDTH = 9"),
        ("partial(nn.Conv2d, 1)", "partial(nn.Conv2d, 2)"),
        ("import torch\n", "import torch as torch\n"),
        ("return function", "return partial(function)"),  # a decorator that runs at the import
        ("return 3", "return 4"),  # a decorator may register this function
    ],
)
def test_what_a_factory_uses_counts(old: str, new: str) -> None:
    assert digest(edited(old, new)) != digest(FILE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return factor", "return globals()['fac' + 'tor']"),
        ("return factor", "return size.__globals__"),
        ("return factor", "return Block.__subclasses__()"),
        ("return factor", "return torch.load('network.pt')"),
        ("return factor", "return (torch.load)"),
        ("return factor", "return eval('fac' + 'tor')"),
        ("return factor", "import nets\n    return nets"),
        ("import torch\n", "from torch.nn.functional import *\n"),
        ("return factor", "import sys\n    return sys"),
        ("return factor", "from importlib import import_module as f\n    return f"),
        ("WIDTH = 8", "WIDTH = 8\nregister(__name__)"),
    ],
)
def test_all_counts_where_code_can_reach_every_name(old: str, new: str, tmp_path: Path) -> None:
    text = edited(old, new)
    assert digest(text) == whole(text, tmp_path)
    assert digest(text) != digest(edited("return x - 1", "return x - 2", text))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("class Other(Big)", "class Other(Big, metaclass=Kind)"),
        ("class Other(Big)", "class Other(Imported)"),
        ("    def forward(self, x):\n        return x - 1", "    y = call(lambda x: x - 1)"),
        ("class Block(nn.Module):", "class Block(nn.Module):\n    __init_subclass__ = print\n"),
        (
            "class Block(nn.Module):",
            "class Block(nn.Module):\n    def __init_subclass__(c): pass\n",
        ),
        ("    def forward(self, x):\n        return x - 1", "    y = descriptor"),
        ("def unrelated(path):", "def unrelated(path=call()):"),
        ("def unrelated(path):", "def unrelated(path: call()):"),
        ("def unrelated(path):", "def __getattr__(path):"),
    ],
)
def test_a_definition_that_does_something_at_the_import_counts(old: str, new: str) -> None:
    text = edited(old, new)
    edits = [
        ("x - 1", "x - 2"),
        ("y = descriptor", "y = other_descriptor"),
        ("return classifier(path)", "return classifier(path + 1)"),
    ]
    assert any(digest(edited(*edit, text)) != digest(text) for edit in edits if edit[0] in text)


def test_an_import_that_only_the_script_uses_reaches_nothing() -> None:
    text = edited("import torch\n", "import sys\nimport torch\n")
    text = edited("print(unrelated(4))", "print(sys.argv)", text)
    assert digest(text) == digest(edited("return x - 1", "return x - 2", text))


def test_weights_alone_may_be_loaded() -> None:
    text = edited("return factor", "return torch.load('network.pt', weights_only=True)")
    assert digest(text) == digest(edited("return x - 1", "return x - 2", text))


def test_a_name_in_an_annotation_or_a_text_counts() -> None:
    for new in ("classifier(classes: 'Other')", "classifier(classes=['Other'])"):
        text = edited("classifier(classes: int = 3)", new)
        assert digest(text) != digest(edited("return x - 1", "return x - 2", text))


def test_a_factory_that_is_a_variable() -> None:
    text = f"{FILE}\nvariant = partial(unrelated, 3)\n"
    assert digest(text, "variant") != digest(
        edited("classifier(path)", "classifier(path, 2)", text), "variant"
    )
    assert digest(text, "variant") == digest(
        edited("return x - 1", "return x - 2", text), "variant"
    )


def test_every_kind_of_source_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "again_nets.py").write_text("from used_nets import classifier as again\n")
    (tmp_path / "used_nets.py").write_text(FILE)
    expected = digest(FILE)
    assert factory_digest(f"{tmp_path / 'used_nets.py'}:classifier", "student") == expected
    assert factory_digest("used_nets:classifier", "teacher") == expected
    assert factory_digest("again_nets:again", "teacher") == expected
    (tmp_path / "hubconf.py").write_text(FILE)
    assert factory_digest(f"hub:{tmp_path}:classifier", "teacher") == expected
