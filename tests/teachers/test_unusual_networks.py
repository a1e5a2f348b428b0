"""Networks unlike the usual: modules used twice, other answers in training, odd weights."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.device.checkpointing import blocks_of, checkpointed
from pipeline.device.precision import channels_last
from pipeline.device.seeding import seed_all
from pipeline.distillation import shared_batchnorm
from pipeline.distillation.feature_maps import FeatureMaps
from pipeline.distillation.optimizers import update_average
from pipeline.distillation.shared_batchnorm import SharedBatchNorm, share_batchnorm
from pipeline.errors import UserError
from pipeline.evaluation.dataset_measures import measure
from pipeline.execution.runner import open_runner
from pipeline.execution.torchrun import Share
from pipeline.inversion.engine import Engine
from pipeline.objective.presets import Objective
from pipeline.stages.distill import distill_students
from pipeline.synthesis.check import load_checked_teacher
from pipeline.synthesis.student_check import check_student
from pipeline.teachers.networks import build_network
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher
from tests.conftest import Params, changed, dataset, load, make, tree

FACTORY = """
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def tied():
    block = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), block, block, nn.Flatten(), nn.Linear(256, 3))


class OneRelu(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.first, self.second = nn.Conv2d(1, 4, 3, 1, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.linear = nn.Linear(128, 3)

    def forward(self, x):
        return self.linear(self.relu(self.second(self.relu(self.first(x)))).flatten(1))


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        return (logits, logits) if self.training else logits


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)
        self.linear.weight.data += torch.from_numpy(np.random.rand(3, 64)).float()

    def forward(self, x):
        scale = 2.0 if self.training and random.random() < 0.5 else 1.0
        return scale * self.linear(x.flatten(1))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.norm.running_mean += 0.1
        self.linear = nn.Linear(64, 3)

    def forward(self, x):
        x = F.batch_norm(x, self.norm.running_mean, self.norm.running_var)
        return self.linear(x.flatten(1))


def half():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).half()


def scripted():
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "unusual.py").write_text(FACTORY)
    return f"{tmp_path / 'unusual.py'}:"


def distilled(params: Params) -> Path:
    """Train the students of a dataset that is there; their directory."""
    config, teacher = load(params)
    with open_runner(config) as run:
        distill_students(config, teacher, run)
    return Path(params["paths"]["students"])


def student(params: Params, factory: str, **training: Any) -> Params:
    changes = {f"distillation.{name}": value for name, value in training.items()}
    return changed(params, {"student.source": factory, "student.arguments": {}, **changes})


def test_a_student_that_uses_a_module_twice_is_trained_and_averaged(
    made: Params, source: str
) -> None:
    root = distilled(student(made, f"{source}tied", ema=0.5))
    weights = load_file(root / "student-0.safetensors")
    assert torch.equal(weights["1.0.weight"], weights["2.0.weight"])


def test_an_average_updates_a_shared_module_once() -> None:
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    average, theirs = nn.Sequential(layer, layer), nn.Sequential(other, other)
    expected = 0.9 * layer.weight + 0.1 * other.weight
    update_average(average, theirs, 0.9)
    torch.testing.assert_close(layer.weight, expected)


def test_maps_of_a_layer_that_is_used_twice_are_separate(made: Params, source: str) -> None:
    images = torch.rand(2, 1, 8, 8)
    network = build_network(f"{source}OneRelu", {}, "student").eval()
    maps = FeatureMaps(network, images)
    with maps:
        network(images)
        seen = maps.take()
    assert {size: tuple(seen[size].shape) for size in seen} == {
        (8, 8): (2, 4, 8, 8),
        (4, 4): (2, 8, 4, 4),
    }
    assert (distilled(student(made, f"{source}OneRelu", imitation=1.0))).is_dir()


def test_a_student_with_a_wrong_output_in_training_mode_is_refused_first(
    made: Params, source: str
) -> None:
    params = student(made, f"{source}Auxiliary")
    config, teacher = load(params)
    with pytest.raises(UserError, match=r"student in training mode must .* returns tuple"):
        check_student(config, teacher, "distillation", config.distillation)
    with pytest.raises(UserError, match="student in training mode"):
        load_checked_teacher(
            config.model_copy(update={"adaptive": config.adaptive.model_copy(update={"rounds": 1})})
        )


def test_chance_is_seeded_wherever_a_network_takes_it_from(made: Params, source: str) -> None:
    params = student(made, f"{source}Skipping")
    first = tree(distilled(params))
    for path in Path(params["paths"]["students"]).iterdir():
        path.unlink()
    seed_all(5)
    random.random()
    assert tree(distilled(params)) == first


def test_batchnorm_that_is_not_called_is_refused(tiny: Params, source: str) -> None:
    params = changed(tiny, {"teacher.source": f"{source}Functional", "teacher.weights": None})
    with pytest.raises(UserError, match="none of the teacher's 1 BatchNorm layers is called"):
        load(params)
    without = {"preset": "without-batchnorm", "feature": 0.0}
    assert make(changed(params, {"synthesis.objective": without})) == [0, 1]


def test_a_network_in_half_precision_is_taken_in_float32(tiny: Params, source: str) -> None:
    params = changed(tiny, {"teacher.source": f"{source}half", "teacher.weights": None})
    _, teacher = load(params)
    assert {weight.dtype for weight in teacher.network.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_torchscript_is_refused(tiny: Params, source: str) -> None:
    params = changed(tiny, {"teacher.source": f"{source}scripted", "teacher.weights": None})
    with pytest.raises(UserError, match="TorchScript"):
        load(params)


def test_nothing_is_said_of_statistics_that_a_network_lacks(tiny: Params) -> None:
    factory = tiny["teacher"]["source"].replace("classifier", "without_batchnorm")
    params = changed(tiny, {"teacher.source": factory, "teacher.weights": None})
    make(params)
    assert "statistics_gap" not in measure(*load(params))[0]
    assert dataset(params).is_dir()


def test_a_layout_is_that_of_what_has_four_dimensions() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv3d(3, 8, 3))
    channels_last(network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous()


def test_a_block_in_two_lists_is_wrapped_once_and_comes_back_as_it_was() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.layer(x)
            return out

    block, patched = Block(), Block()
    own = patched.layer.forward
    patched.forward = own  # type: ignore[method-assign]
    network = nn.Sequential(nn.Sequential(block, patched), nn.Sequential(block, Block()))
    assert len(blocks_of(network)) == 4
    images = torch.rand(2, 4, requires_grad=True)
    expected = network(images)
    with checkpointed(network):
        assert torch.equal(network(images), expected)
    assert "forward" not in vars(block)
    assert patched.forward is own


@pytest.mark.parametrize("nested", [False, True])
def test_a_batchnorm_of_two_names_is_shared_by_both(
    nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = nn.BatchNorm2d(2)
    part = nn.Sequential(norm) if nested else norm
    network = nn.Sequential(nn.Conv2d(2, 2, 3), part, nn.Conv2d(2, 2, 3), part)
    monkeypatch.setattr(shared_batchnorm, "own_share", lambda: Share(0, 2))
    share_batchnorm(network)
    kinds = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert kinds == []
    both = [network[1], network[3]]
    both = [each[0] if nested else each for each in both]
    assert all(isinstance(each, SharedBatchNorm) for each in both)
    assert both[0].running_mean is both[1].running_mean


def test_a_size_for_which_images_merge_is_not_taken() -> None:
    class Merging(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, 8)

    one = torch.ones(1, 1, 1, 1)
    teacher = Teacher(Merging(), Preprocessing(one, one), (1, 2, 4), 8, "")
    engine = Engine(teacher, Objective())
    assert engine.takes((2, 4)) and not engine.takes((2, 2)) and not engine.takes((4, 4))
