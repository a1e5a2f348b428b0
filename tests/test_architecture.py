"""The structure that CONTRIBUTING.md promises: sizes, imports, docstrings and plain English."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "flows")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MOST_LINES, MOST_IMPORTS = 300, 12
PROSE = sorted(
    path
    for pattern in ("pipeline/**/*.py", "flows/**/*.py", "README.md", "docs/**/*.md", "params.yaml")
    for path in ROOT.glob(pattern)
)
# Phrases of an older, private way of writing. Each hid its subject or its verb.
BANNED = (
    "anew",
    "as dear",
    "can mend",
    "going on without",
    "is not whole",
    "it is not there",
    "may be over later",
    "mean what they mean",
    "moved images",
    "of its own",
    "says to a compiler",
    "so is one that",
    "what is there",
    "what stands in the way",
    "where that is",
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_modules(path: Path) -> set[str]:
    """Return the modules of this project that a module imports, also inside functions."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            folder = (ROOT / node.module.replace(".", "/")).is_dir()
            modules |= {f"{node.module}.{a.name}" if folder else node.module for a in node.names}
    return {module for module in modules if module.partition(".")[0] in PACKAGES}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_fits_its_reader(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES, f"{name(path)} has {lines} lines: split it"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_imports_few_others(path: Path) -> None:
    modules = imported_modules(path)
    assert len(modules) <= MOST_IMPORTS, f"{name(path)} imports {sorted(modules)}"


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=name)
def test_a_package_says_what_belongs_there(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", PROSE, ids=name)
def test_no_phrase_of_the_old_dialect(path: Path) -> None:
    text = " ".join(path.read_text().split())
    found = [phrase for phrase in BANNED if re.search(rf"\b{re.escape(phrase)}\b", text, re.I)]
    assert not found, f"{name(path)} says {', '.join(found)}: write it in plain English"
