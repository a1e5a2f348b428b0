from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config.distillation import DistillationConfig
from pipeline.distillation.optimizers import ADAM_DECAY, ADAM_RATE, learning_rate
from pipeline.distillation.step import Training
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher
from tests.distillation.test_muon import batch, network


def test_the_rate_of_a_student_warms_up_and_falls_to_zero() -> None:
    config = DistillationConfig(learning_rate=2.0, warmup=4, steps=20)
    rates = [learning_rate(config, step) for step in range(21)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert [rates[8], rates[12], rates[20]] == pytest.approx([1 + 0.5**0.5, 1.0, 0.0])
    short = DistillationConfig(learning_rate=1.0, warmup=100, steps=5)
    assert [learning_rate(short, step) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]


def plain(**changes: Any) -> Training:
    """A student on its way without any augmentation."""
    one = torch.ones(1, 3, 1, 1)
    frozen = Teacher(
        network().eval().requires_grad_(False), Preprocessing(one / 2, one / 4), (3, 8, 8), 4, ""
    )
    settings = {
        "steps": 6, "batch_size": 4, "optimizer": "sgd", "compile": False, "shift": 0,
        "flip": False, "mixup": 0.0, "cutmix": 0.0, "warmup": 2, "precision": "float32",
        "procedural": 0.0, "adversarial": 0.0,
    }  # fmt: skip
    student = changes.pop("student", network())
    return Training(frozen, student, DistillationConfig(**{**settings, **changes}), seed=0)


def test_each_step_draws_its_own_augmentation() -> None:
    made = plain(mixup=1.0)
    first, second, again = (made.step(number, batch(0)).target.clone() for number in (0, 1, 0))
    assert torch.equal(first, again) and not torch.allclose(first, second)


def test_each_step_draws_its_own_dropout() -> None:
    student = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))
    made = plain(student=student, learning_rate=1e-9)
    first, second, again = (made.step(number, batch(0)).logits.clone() for number in (0, 1, 0))
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, second, atol=1e-3)


def test_next_to_muon_the_other_weights_move_by_adam_and_decay() -> None:
    """The last layer here has no hidden weights before it, so all weights are Adam's."""
    student = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 4))
    made = plain(optimizer="muon", student=student, weight_decay=0.1, learning_rate=0.05)
    config = DistillationConfig(steps=6, warmup=2, learning_rate=0.05)
    expected = [nn.Parameter(weight.detach().clone()) for weight in made.student.parameters()]
    # The weights decay by weight_decay times the learning rate, whatever Adam's own rate is.
    adam = torch.optim.AdamW(
        expected, betas=(0.9, ADAM_DECAY), weight_decay=0.1 / ADAM_RATE, fused=True
    )
    for number in range(3):
        made.step(number, batch(number))
        adam.param_groups[0]["lr"] = ADAM_RATE * learning_rate(config, number)
        for own, weight in zip(expected, made.student.parameters(), strict=True):
            own.grad = weight.grad
        adam.step()
    for own, weight in zip(expected, made.student.parameters(), strict=True):
        torch.testing.assert_close(own.detach(), weight.detach())


@pytest.mark.parametrize(("features", "classes"), [(4096, 2), (16, 2), (4096, 50)])
def test_students_with_few_classes_or_many_features_do_not_diverge(
    features: int, classes: int
) -> None:
    """SGD at the same rate diverges where the last layer sees many features: its step grows."""
    torch.manual_seed(0)
    teacher, student = (
        nn.Sequential(
            nn.Flatten(), nn.Linear(192, features), nn.ReLU(), nn.Linear(features, classes)
        )
        for _ in range(2)
    )
    one = torch.ones(1, 3, 1, 1)
    frozen = Teacher(
        teacher.eval().requires_grad_(False),
        Preprocessing(one / 2, one / 4), (3, 8, 8), classes, "",
    )  # fmt: skip
    config = DistillationConfig(
        steps=60, batch_size=16, compile=False, shift=0, flip=False, mixup=0.0, cutmix=0.0,
        warmup=10, precision="float32", optimizer="muon", procedural=0.0, adversarial=0.0,
    )  # fmt: skip
    made = Training(frozen, student, config, seed=0)
    pixels = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    losses = [float(made.step(number, pixels).loss) for number in range(60)]
    assert losses[-1] < 0.2 * losses[0]


def test_everything_else_moves_by_nesterovs_momentum_and_decays() -> None:
    made = plain(weight_decay=0.1, momentum=0.8, learning_rate=0.05)
    config = DistillationConfig(steps=6, warmup=2, learning_rate=0.05)
    expected = [nn.Parameter(weight.detach().clone()) for weight in made.student.parameters()]
    sgd = torch.optim.SGD(expected, 0.05, momentum=0.8, weight_decay=0.1, nesterov=True)
    for number in range(3):
        made.step(number, batch(number))
        sgd.param_groups[0]["lr"] = learning_rate(config, number)
        for own, weight in zip(expected, made.student.parameters(), strict=True):
            own.grad = weight.grad
        sgd.step()
    for own, weight in zip(expected, made.student.parameters(), strict=True):
        torch.testing.assert_close(own.detach(), weight.detach())


def test_a_step_replaces_a_share_of_its_images_and_leaves_the_callers_batch() -> None:
    pixels = batch(0)
    before = pixels.clone()
    with plain() as without:
        unchanged = without.step(0, pixels).target.clone()
    with plain(procedural=1.0) as all_new:
        first, second, again = (all_new.step(n, pixels).target.clone() for n in (0, 1, 0))
    assert torch.equal(pixels, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, second) and not torch.equal(first, unchanged)
