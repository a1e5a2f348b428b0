"""The documents: their links lead somewhere, and the commands and keys that they name exist."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import tomllib
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
SECTIONS = "teacher|student|synthesis|adaptive|distillation|evaluation|calibration|execution|paths"
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
    """Whether the command line knows ``command``: then it prints its help."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return main([command, "--help"]) == 0


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


# Folders of a dataset, which look like paths of the repository.
_IN_A_DATASET = ("train/", "metadata/", "students/")
_PATH = re.compile(r"`((?:[\w.-]+/)*(?:[\w-]+/|[\w.-]+\.(?:py|md|yaml|toml|json|sh)))`")
_NAME_IN_MODULE = re.compile(r"`(\w+)` (?:of |in |\()`([\w/]+\.py)`")
_MODULE_WITHOUT_ENDING = re.compile(r"(?<![\w/])[a-z]+/[a-z_]+(?![\w/])")
ARCHITECTURE = ROOT / "docs" / "architecture.md"
STRUCTURE = (ARCHITECTURE, ROOT / "CONTRIBUTING.md")


def find_path(text: str) -> Path:
    """What a document names from the root of the repository or of the package. It may not exist."""
    inside = ROOT / "pipeline" / text
    return inside if inside.exists() else ROOT / text


def defined_names(module: Path) -> set[str]:
    """The functions, classes and variables of a module."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    kinds = (ast.FunctionDef, ast.ClassDef)
    return stored | {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


@pytest.mark.parametrize("path", STRUCTURE, ids=name)
def test_the_paths_of_the_structure_exist(path: Path) -> None:
    named = _PATH.findall(path.read_text(encoding="utf-8"))
    assert len(named) > 10
    ours = [text for text in named if not text.startswith(_IN_A_DATASET)]
    assert not [text for text in ours if not find_path(text).exists()]


def test_the_names_of_the_structure_are_in_their_modules() -> None:
    """As in ``TERMS`` of ``objective/terms.py``."""
    named = {pair for path in STRUCTURE for pair in _NAME_IN_MODULE.findall(path.read_text())}
    assert {name for name, _ in named} >= {"TERMS", "SOURCES", "INDEX_FILES", "COMMANDS"}
    assert not [pair for pair in sorted(named) if pair[0] not in defined_names(find_path(pair[1]))]


def test_the_drawing_names_modules() -> None:
    """As ``dataset/plan``: a module without its ending."""
    named = _MODULE_WITHOUT_ENDING.findall(_FENCE.findall(ARCHITECTURE.read_text())[0])
    assert len(named) > 8
    assert not [text for text in named if not find_path(f"{text}.py").exists()]


def test_the_rows_of_the_folders_are_the_contract_of_imports() -> None:
    """Each folder and module of ``pipeline/`` has a row, in the order that import-linter checks."""
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", ARCHITECTURE.read_text(), re.MULTILINE)
    row_of = {Path(text).stem: int(number) for number, cell in rows for text in _PATH.findall(cell)}
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [layer.split(" | ") for layer in contracts["contracts"][0]["layers"]]
    ordered = [row_of[part] for layer in layers for part in layer if part != "examples"]
    assert ordered == sorted(ordered)
