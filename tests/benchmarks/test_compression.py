from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compression import study
from benchmarks.compression.fake_quantiser import FakeQuantiser, best_step, quantise
from benchmarks.compression.pruned import multiply_adds, prune
from benchmarks.compression.quantised import QuantisedTraining
from examples.cifar10 import ResNet
from pipeline.config.distillation import DistillationConfig
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher

ONES = torch.ones(1, 3, 1, 1)
SHAPE = (3, 8, 8)


@pytest.fixture
def teacher() -> Teacher:
    torch.manual_seed(0)
    network = ResNet(1, 10).eval().requires_grad_(False)
    network.linear.weight.mul_(30)  # Random weights alone answer almost the same for each image.
    return Teacher(network, Preprocessing(0.5 * ONES, 0.25 * ONES), SHAPE, 10, "0")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, *SHAPE), np.uint8)


def test_a_fake_quantiser_rounds_and_passes_the_gradient() -> None:
    values = torch.tensor([-3.0, -0.4, 0.3, 0.6, 9.0], requires_grad=True)
    quantiser = FakeQuantiser(3, True, torch.tensor(0.5))
    rounded = quantiser(values)
    assert torch.allclose(rounded, torch.tensor([-2.0, -0.5, 0.5, 0.5, 1.5]))
    rounded.sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0, 1, 1, 1, 0]
    # The sum of round(v / s) - v / s inside the range, and of the last levels outside, times s.
    inside = sum(round(v / 0.5) - v / 0.5 for v in (-0.4, 0.3, 0.6))
    assert quantiser.log_step.grad is not None
    assert quantiser.log_step.grad.item() == pytest.approx(0.5 * (inside - 4 + 3), abs=1e-5)


def test_the_first_step_has_the_least_error() -> None:
    row = torch.cat([torch.linspace(0, 1, 1000), torch.tensor([8.0])])
    step = best_step(torch.stack([row, 10 * row]), 3, signed=False)
    assert step[0] < 0.5 * 8 / 7  # one outlier does not decide it
    assert step[1] == pytest.approx(10 * float(step[0]), rel=1e-4)


def test_all_layers_and_activations_are_quantised(teacher: Teacher, pixels: np.ndarray) -> None:
    inputs = teacher.preprocessing.normalise(torch.from_numpy(pixels))
    before = teacher.network(inputs)
    network = quantise(teacher.network, (4, 3), inputs)
    layers = [each for each in network.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    assert len(layers) == 8
    for layer in layers:
        assert all(len(channel.unique()) <= 16 for channel in layer.weight)
    seen = []
    acts = [(n, m) for n, m in network.named_children() if isinstance(m, FakeQuantiser)]
    for _, module in acts:
        module.register_forward_hook(lambda module, given, output: seen.append(output))
    network(inputs)
    assert len(acts) == len(seen) == 7 and all(len(each.unique()) <= 8 for each in seen)
    assert torch.equal(teacher.network(inputs), before)


@pytest.mark.parametrize("fixed", [True, False])
def test_training_at_low_bits_lowers_the_loss(
    teacher: Teacher, pixels: np.ndarray, fixed: bool
) -> None:
    def create() -> tuple[nn.Module, QuantisedTraining]:
        images = torch.from_numpy(pixels)
        network = quantise(teacher.network, (3, 3), teacher.preprocessing.normalise(images))
        config = DistillationConfig(
            steps=20, warmup=0, learning_rate=1e-3, mixup=0, cutmix=0, compile=False
        )
        return network, QuantisedTraining(teacher, network, config, 0, fixed)

    network, training = create()
    statistics = network.get_buffer("bn1.running_mean").clone()
    losses = [training.step(number, torch.from_numpy(pixels)) for number in range(10)]
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(network.get_buffer("bn1.running_mean"), statistics) == fixed
    _, again = create()
    again.load_state_dict(training.state_dict())
    assert again.step(10, torch.from_numpy(pixels)) == training.step(10, torch.from_numpy(pixels))


def test_pruning_keeps_the_channels_of_the_shortcuts(teacher: Teacher, pixels: np.ndarray) -> None:
    network = prune(teacher, pixels, 0.3)
    share = multiply_adds(network, teacher) / multiply_adds(teacher.network, teacher)
    assert 0.6 < share <= 0.7
    widths = [network.get_submodule(f"layer{number}.0.bn2").num_features for number in (1, 2, 3)]
    assert widths == [16, 32, 64]
    F.cross_entropy(network(torch.zeros(2, *SHAPE)), torch.tensor([0, 1])).backward()


class Recorded:
    """Keeps the batches that it gets; a stop interrupts it."""

    def __init__(self, stop: int | None = None) -> None:
        self.seen: list[list[int]] = []
        self.stop = stop

    def step(self, number: int, pixels: Tensor) -> None:
        if number == self.stop:
            raise KeyboardInterrupt
        self.seen.append(pixels.flatten().tolist())

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def test_an_interrupted_row_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "CHECKPOINT_EVERY", 2)
    images, path = np.arange(10, dtype=np.uint8), tmp_path / "row.checkpoint"
    whole, stopped, rest = Recorded(), Recorded(stop=5), Recorded()
    study.take_steps(whole, images, 7, 3, 0, tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        study.take_steps(stopped, images, 7, 3, 0, path)
    study.take_steps(rest, images, 7, 3, 0, path)
    assert rest.seen == whole.seen and len(whole.seen) == 7
    epochs = (whole.seen[:3], whole.seen[3:6])
    assert all(len({image for batch in epoch for image in batch}) == 9 for epoch in epochs)


def test_rows_are_measured_once_for_each_setting(tmp_path: Path) -> None:
    calls = []

    def work(variant: str, source: str, seed: int, checkpoint: Path) -> study.Row:
        calls.append((variant, source, seed))
        checkpoint.touch()
        return {"accuracy": {"real": 90.0, "synthetic": 89.0, "noise": 50.0}[source] + seed}

    rows = study.Rows(tmp_path, "10 steps")
    rows.measure(["W4A4"], study.SOURCES, [0, 1], work)
    rows.measure(["W4A4"], study.SOURCES, [0, 1], work)
    assert len(calls) == 6 and not list(tmp_path.glob("*.checkpoint"))
    head, _, line = rows.table(["W4A4"], [0, 1], "accuracy")
    assert head.startswith("| accuracy | real | synthetic | noise |")
    assert "90.50 (90.00 to 91.00, 2 seeds)" in line and line.endswith("| -1.00 | -40.00 |")
    study.Rows(tmp_path, "20 steps").measure(["W4A4"], ["real"], [0], work)
    assert len(calls) == 7
