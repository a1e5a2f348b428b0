"""The objective is resolved when something asks for it, and by nothing else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.config.schema import Config
from pipeline.objective.presets import PRESETS
from pipeline.params import parse_params
from pipeline.reports.files import report_synthesis
from pipeline.teachers import inferred, teacher
from tests.conftest import Params, changed, write_params


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources of the networks that are built."""
    sources: list[str] = []
    original = inferred.build_network

    def build(source: str, *arguments: Any, **more: Any) -> Any:
        sources.append(source)
        return original(source, *arguments, **more)

    for module in (inferred, teacher):
        monkeypatch.setattr(module, "build_network", build)
    return sources


def test_parsing_complete_parameters_builds_no_network(tiny: Params, built: list[str]) -> None:
    adaptive = parse_params(changed(tiny, {"adaptive.rounds": 2}))
    assert adaptive.synthesis.objective.preset == "auto"
    assert built == []


@pytest.mark.parametrize("command", ["plan", "summary"])
def test_commands_that_only_read_files_build_no_network(
    made: Params, tmp_path: Path, built: list[str], command: str
) -> None:
    report_synthesis(parse_params(made), [])
    path = write_params(made, tmp_path / "params.yaml")
    assert main([command, "--params", str(path)]) == 0
    assert built == []


def test_the_preset_is_chosen_once_also_for_copies_and_workers(
    tiny: Params, built: list[str]
) -> None:
    config = parse_params(tiny)
    copied = config.model_copy(update={"paths": config.paths})
    assert config.preset == copied.preset == "normalised"
    assert pickle.loads(pickle.dumps(config)).objective == config.objective
    assert built == [tiny["teacher"]["source"]]


def test_a_named_preset_needs_no_network(tiny: Params, built: list[str]) -> None:
    config = parse_params(changed(tiny, {"synthesis.objective.preset": "adaptive-cifar10"}))
    assert config.compete == PRESETS["adaptive-cifar10"].compete
    assert built == []


def test_large_images_have_more_iterations_by_default(tiny: Params) -> None:
    def iterations(height: int, **given: int) -> int:
        shape = {"teacher.input.height": height, "teacher.input.width": 128}
        tiny["synthesis"].pop("iterations", None)
        return parse_params(changed(tiny, {**shape, **given})).iterations

    assert [iterations(height) for height in (8, 95, 96, 224)] == [200, 200, 400, 400]
    assert iterations(224, **{"synthesis.iterations": 7}) == 7


def test_values_of_the_file_replace_those_of_the_chosen_preset(tiny: Params) -> None:
    config = parse_params(changed(tiny, {"synthesis.objective.tv": 0.5}))
    assert (config.objective.tv, config.objective.flip) == (0.5, False)
    assert config.objective.feature == PRESETS["normalised"].feature


def test_auto_presets_have_a_weight_of_r_compete() -> None:
    """The check of ``adaptive.rounds`` relies on it."""
    names = [name for name in PRESETS if name.startswith(("normalised", "without-batchnorm"))]
    assert len(names) == 5
    assert all(PRESETS[name].compete > 0 for name in names)


def test_a_config_without_a_look_at_the_teacher_says_so(tiny: Params) -> None:
    config = Config.model_validate_json(parse_params(tiny).model_dump_json())
    with pytest.raises(ValueError, match="make it with load_params"):
        _ = config.objective
