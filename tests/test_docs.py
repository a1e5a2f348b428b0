"""The documents: their links lead somewhere, and the commands and keys that they name exist."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.cli import main

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "deploy" / "README.md"]
)
# Results and history quote parameters of old commits.
CURRENT = [path for path in DOCUMENTS if path.parent.name != "results" and path.stem != "lab-log"]
SECTIONS = "teacher|student|synthesis|adaptive|distillation|evaluation|execution|paths"
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_MODULE = re.compile(r"python -m\s+((?:pipeline|flows|benchmarks|examples|tests)[\w.]*)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:python -m pipeline|(?<![-\w/.'\"])dreamshard) ([a-z]+)")
_KEY = re.compile(rf"(?<![\w./-])((?:{SECTIONS})(?:\.[a-z_0-9]+)+)(?![\w/])")
_DOCUMENT = re.compile(r"docs/[\w/-]+\.(?:md|json|png)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them, and those written by hand."""
    text = path.read_text(encoding="utf-8")
    found = set(re.findall(r'<a id="([^"]+)">', text))
    for heading in re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCE.sub("", path.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_modules_exist(path: Path) -> None:
    modules = set(_MODULE.findall(path.read_text(encoding="utf-8")))
    assert not [module for module in modules if importlib.util.find_spec(module) is None]


def test_commands_exist() -> None:
    texts = [path.read_text(encoding="utf-8") for path in CURRENT]
    code = [part for text in texts for part in _CODE.findall(text)]
    named = {command for part in code for command in _COMMAND.findall(part)}
    assert {"synthesize", "distill", "verify", "probe"} <= named
    assert not [command for command in sorted(named) if not is_command(command)]


def is_command(command: str) -> bool:
    """Whether the command line knows ``command``: then it prints its help and exits."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main([command, "--help"])
    except SystemExit as done:
        return done.code == 0
    return False


@pytest.mark.parametrize("path", CURRENT, ids=name)
def test_keys_are_parameters(path: Path) -> None:
    known = parameter_keys(YAML(typ="safe").load(ROOT / "params.yaml"))
    endings = ("json", "csv", "png", "py", "yaml", "md")
    keys = {
        key
        for key in _KEY.findall(path.read_text(encoding="utf-8"))
        if key.rpartition(".")[2] not in endings
    }
    # `teacher.arguments`, `evaluation.verifier` and a table of counts have keys of the user's own.
    # `student.log` is an attribute of the Python API's Student.
    free = ("teacher.arguments.", "student.arguments.", "evaluation.verifier.")
    keys -= {f"student.{name}" for name in ("log", "name", "weights")}
    assert not sorted(key for key in keys - known if not key.startswith(free))


def parameter_keys(section: dict[str, Any], prefix: str = "") -> set[str]:
    """The dotted names of all keys of a parameter file."""
    keys = set()
    for key, value in section.items():
        keys.add(f"{prefix}{key}")
        if isinstance(value, dict):
            keys |= parameter_keys(value, f"{prefix}{key}.")
    return keys


def test_code_names_documents_that_exist() -> None:
    missing = []
    for folder in ("pipeline", "flows", "benchmarks", "examples", "deploy"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yaml", ".sh", ".sbatch"):
                text = path.read_text(encoding="utf-8")
                missing += [
                    f"{name(path)}: {document}"
                    for document in _DOCUMENT.findall(text)
                    if not (ROOT / document).exists()
                ]
    assert not missing


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
