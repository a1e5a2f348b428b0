"""Every wrong teacher: one sentence that names the cause, exit code 2, in seconds."""

from __future__ import annotations

import logging
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.cli import main
from pipeline.objective.bn_statistics import untrained_layers
from pipeline.params import parse_params
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.batchnorm_check import expectation, range_factor
from tests.conftest import Params, changed, load, make, write_params


def rewritten(folder: Path, change: str) -> str:
    """The teacher's weights with something wrong; the path of the new file."""
    state = load_file(folder / "teacher.safetensors")
    if change == "nan":
        state["3.weight"][0, 0, 0, 0] = float("nan")
    elif change == "untrained":
        for name, tensor in state.items():
            if name.endswith("running_mean"):
                tensor.zero_()
            if name.endswith("running_var"):
                tensor.fill_(1)
    elif change in ("zero", "huge"):
        state["1.running_var"].fill_(0 if change == "zero" else 1e38)
    elif change == "deep":
        state["4.running_var"][3] = 1e38
    elif change == "folded":
        kept = {name: t for name, t in state.items() if not name.startswith(("1.", "4."))}
        state = {**kept, "0.bias": torch.zeros(6), "3.bias": torch.zeros(12)}
    save_file(state, folder / f"{change}.safetensors")
    return str(folder / f"{change}.safetensors")


WRONG: list[tuple[dict[str, Any], str | None, str]] = [
    ({"teacher.weights": "nowhere/weights.pt"}, None, "there is no file nowhere/weights.pt"),
    ({"teacher.source": "torchvision:squeezenet1_1"}, None, "does not fit teacher.source"),
    ({"teacher.classes": 5, "teacher.class_names": None}, None, "returns 3 logits"),
    ({}, "nan", "NaN or infinite values (first: 3.weight)"),
    ({}, "untrained", "were never trained (mean 0 and variance 1 in all 2 layers)"),
    ({}, "folded", "BatchNorm was folded into the convolutions"),
    ({}, "zero", "BatchNorm layer 1 has running variances that no training leaves (median 0)"),
    ({}, "huge", "BatchNorm layer 1 has running variances that no training leaves (largest 1e+38)"),
    ({}, "deep", "BatchNorm layer 4 has running variances that no training leaves (largest 1e+38)"),
    (
        {
            "teacher.input.channels": 3,
            "teacher.input.mean": [0.4] * 3,
            "teacher.input.std": [0.3] * 3,
        },
        None,
        "teacher.input.channels is 3, but the first convolution of the teacher takes 1",
    ),
    ({"teacher.input.mean": [102.0], "teacher.input.std": [76.5]}, None, "divide both by 255"),
    ({"teacher.input.std": [0.3 / 255]}, None, "teacher.input.mean and std are obviously off"),
]


@pytest.mark.parametrize(("changes", "weights", "said"), WRONG)
def test_a_wrong_teacher_is_one_sentence(
    tiny: Params,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    weights: str | None,
    said: str,
) -> None:
    params = changed(tiny, changes)
    if weights is not None:
        params = changed(params, {"teacher.weights": rewritten(tmp_path, weights)})
    started = time.monotonic()
    code = main(["synthesize", "--params", str(write_params(params, tmp_path / "p.yaml"))])
    assert time.monotonic() - started < 10
    printed = capsys.readouterr().err
    assert code == 2
    assert len(printed.strip().splitlines()) == 1
    assert said in printed
    assert not (tmp_path / "dataset" / "train").exists()


def test_weights_of_a_factory_that_are_nan(tiny: Params, tmp_path: Path) -> None:
    (tmp_path / "nan.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            def make():
                network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
                nn.init.constant_(network[1].bias, float("nan"))
                return network
            """
        )
    )
    changes = {"teacher.source": f"{tmp_path / 'nan.py'}:make", "teacher.weights": None}
    with pytest.raises(Exception, match="blank image with NaN"):
        load(changed(tiny, changes))


def test_a_sound_teacher_is_well_within_range(tiny: Params) -> None:
    _, teacher = load(tiny)
    assert 0.05 < range_factor(teacher) < 20
    assert untrained_layers(teacher.network) == []


def test_a_teacher_without_batchnorm_gets_its_own_objective(
    tiny: Params, caplog: pytest.LogCaptureFixture
) -> None:
    source = tiny["teacher"]["source"].replace("classifier", "without_batchnorm")
    params = changed(tiny, {"teacher.source": source, "teacher.weights": None})
    config = parse_params(params)
    assert config.preset == "without-batchnorm"
    assert config.objective.colour > 0
    with caplog.at_level(logging.WARNING):
        load_checked_teacher(config)
    (note,) = [record.getMessage() for record in caplog.records]
    assert "no BatchNorm" in note and "teach a student less" in note
    assert make(params) == [0, 1]


def test_an_objective_that_was_chosen_is_kept(tiny: Params) -> None:
    assert parse_params(tiny).preset == "normalised"
    source = tiny["teacher"]["source"].replace("classifier", "without_batchnorm")
    params = changed(tiny, {"teacher.source": source, "synthesis.objective.preset": "normalised"})
    assert parse_params(params).preset == "normalised"
    medium = changed(tiny, {"teacher.input.height": 32, "teacher.input.width": 64})
    assert parse_params(medium).preset == "normalised-medium"
    assert parse_params(medium).objective.coarse > 0
    large = changed(tiny, {"teacher.input.height": 96, "teacher.input.width": 128})
    assert parse_params(large).preset == "normalised-large"


def test_folded_batchnorm_is_suspected_where_nothing_normalises() -> None:
    convolutions = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    assert "folded into the convolutions" in expectation(convolutions)
    assert "folded" not in expectation(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2)))


def test_random_weights_that_were_asked_for_are_a_warning(
    tiny: Params, caplog: pytest.LogCaptureFixture
) -> None:
    section = {
        "source": "timm:resnet10t",
        "arguments": {"num_classes": 3},
        "weights": None,
        "input": {"height": 32, "width": 32},
    }
    with caplog.at_level(logging.WARNING):
        load_checked_teacher(parse_params({**tiny, "teacher": section}))
    assert "14 of the teacher's 14 BatchNorm layers were never trained" in caplog.text
