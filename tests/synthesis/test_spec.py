"""The changes that alter the spec of a shard or a student, or the digest of a teacher."""

from __future__ import annotations

import ast
import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pipeline.teachers.teacher
from pipeline.distillation.job import STUDENT_CODE
from pipeline.params import parse_params
from pipeline.source_digest import PACKAGE, source_digest, source_files
from pipeline.stages.final_students import student_jobs
from pipeline.synthesis.spec import SHARD_CODE, round_spec
from tests.conftest import Params, changed, load


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attempts", 4),
        ("min_confidence", 0.1),
        ("confirmed", True),
        ("max_similarity", 0.9),
        ("keep", 0.5),
        ("iterations", 5),
        ("soft_labels", True),
        ("views", 2),
        ("captions", "a photo of a {}"),
        ("threads", 2),
        ("precision", "bfloat16"),
        ("compile", True),
        ("checkpointing", True),
        ("objective.tv", 0.5),
    ],
)
def test_each_setting_is_in_the_spec(tiny: Params, key: str, value: Any) -> None:
    other = changed(tiny, {f"synthesis.{key}": value})
    one, two = (round_spec(parse_params(params), 0, "", None) for params in (tiny, other))
    assert one != two


def test_torch_and_code_are_in_the_specs(made: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    config, teacher = load(made)
    (job,) = student_jobs(config, teacher)
    shards, student = round_spec(config, 0, "", None), job.spec()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "99.1.0")
        assert round_spec(config, 0, "", None) != shards
        assert job.spec() != student


CLOSED = {  # imported by the jobs and left out of their digests, with the reason
    "config": "a spec holds its values",
    "tracking": "it receives values and gives none back",
    "errors.py": "texts for a person",
    "execution": "where a job runs; torchrun.py, which averages gradients, is a student's",
}


@pytest.mark.parametrize(
    ("job", "names"),
    [("synthesis/make_shard.py", SHARD_CODE), ("distillation/job.py", STUDENT_CODE)],
)
def test_every_module_that_a_job_imports_is_in_its_digest(job: str, names: Sequence[str]) -> None:
    covered = set(source_files(names))
    missing = {
        str(file.relative_to(PACKAGE))
        for file in imported_files(PACKAGE / job) - covered
        if file.name != "__init__.py" and file.relative_to(PACKAGE).parts[0] not in CLOSED
    }
    assert not missing
    assert all(file.is_file() for file in covered)


@pytest.mark.parametrize("names", [SHARD_CODE, STUDENT_CODE])
def test_a_change_of_any_covered_file_is_seen(names: Sequence[str], tmp_path: Path) -> None:
    root = tmp_path / "pipeline"
    shutil.copytree(PACKAGE, root)
    files = source_files(names, root)
    for file in files:  # The digest parses all files for each change: short ones are enough.
        file.write_text("SHORT = 1\n")
    before = source_digest(files)
    for file in files:
        file.write_text("SHORT = 1\nCHANGED = 1\n")
        assert source_digest(source_files(names, root)) != before, file
        file.write_text("SHORT = 1\n")
    assert source_digest(source_files(names, root)) == before


def imported_files(start: Path) -> set[Path]:
    """The files of this package that ``start`` imports, directly or indirectly."""
    seen: set[Path] = set()
    todo = [start]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
                path = PACKAGE.parent / str(node.module).replace(".", "/")
                parts = [path / alias.name for alias in node.names]
                todo += [
                    p.with_suffix(".py") for p in (path, *parts) if p.with_suffix(".py").is_file()
                ]
    return seen


def test_a_student_of_another_factory_is_stale(made: Params, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(Path(made["student"]["source"].partition(":")[0]).read_text())
    params = changed(made, {"student.source": f"{own}:classifier"})
    (job,) = student_jobs(*load(params))
    before = job.spec()
    own.write_text(own.read_text().replace("nn.ReLU()", "nn.LeakyReLU()", 1))
    assert job.spec() != before


def test_source_digest_sees_code_alone(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        (tmp_path / "x.py").write_text(text)
        return source_digest([tmp_path / "x.py"])

    first = digest('"""A."""\ndef f(x):\n    """B."""\n    return x + 1  # one\n')
    assert digest("def f( x ):\n\n    return (x + 1)\n") == first
    assert digest("def f(x):\n    return x + 2\n") != first


def test_library_version_is_in_the_digest(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(2, 2)
    config = parse_params(changed(tiny, {"teacher.class_names": None})).teacher
    config = config.model_copy(update={"source": "torchvision:resnet18", "arguments": {}})
    first = pipeline.teachers.teacher._parts(config, network)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "99")
    assert pipeline.teachers.teacher._parts(config, network) != first
