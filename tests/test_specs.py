"""What makes a shard, a student or a teacher another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pipeline.teacher
from pipeline import muon, synthesis
from pipeline.code import source_digest
from pipeline.config import parse_config
from pipeline.students import student_jobs
from pipeline.synthesis import round_spec
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
        ("threads", 2),
        ("precision", "bfloat16"),
        ("compile", True),
        ("checkpointing", True),
        ("objective.tv", 0.5),
    ],
)
def test_each_setting_is_in_the_spec(tiny: Params, key: str, value: Any) -> None:
    other = changed(tiny, {f"synthesis.{key}": value})
    one, two = (round_spec(parse_config(params), 0, "", None) for params in (tiny, other))
    assert one != two


def test_torch_and_code_are_in_the_specs(
    made: Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, teacher = load(made)
    (job,) = student_jobs(config, teacher)
    shards, student = round_spec(config, 0, "", None), job.spec()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "99.1.0")
        assert round_spec(config, 0, "", None) != shards
        assert job.spec() != student
    copied = tmp_path / "muon.py"
    copied.write_text(Path(muon.__file__).read_text() + "\nONE = 1\n")
    monkeypatch.setattr(muon, "__file__", str(copied))
    assert job.spec() != student
    views = synthesis.views
    copied.write_text(Path(views.__file__).read_text() + "\nONE = 1\n")
    monkeypatch.setattr(views, "__file__", str(copied))
    synthesis._code_digest.cache_clear()
    try:
        assert round_spec(config, 0, "", None) != shards
    finally:
        synthesis._code_digest.cache_clear()


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
    config = parse_config(changed(tiny, {"teacher.class_names": None})).teacher
    config = config.model_copy(update={"source": "torchvision:resnet18", "arguments": {}})
    first = pipeline.teacher._digest(config, network)
    monkeypatch.setattr(pipeline.teacher, "version", lambda package: "99")
    assert pipeline.teacher._digest(config, network) != first
