from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.objective.compete import compete_loss, jensen_shannon
from tests.objective.samples import random, softmax


def test_jensen_shannon_by_hand() -> None:
    teacher, student = 2 * random(6, 4, seed=1), 2 * random(6, 4, seed=2)
    p, q = softmax(teacher), softmax(student)
    m = (p + q) / 2
    expected = ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)) / 2
    assert jensen_shannon(teacher, student).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    competing = compete_loss(teacher, student, labels).tolist()
    assert competing == pytest.approx((1 - expected).tolist(), abs=1e-6)
    same = p.argmax(1) == q.argmax(1)
    assert 0 < same.sum() < 6
    masked = compete_loss(teacher, student, labels, masked=True).tolist()
    assert masked == pytest.approx(((1 - expected) * same).tolist(), abs=1e-6)


def test_a_temperature_divides_both_logits() -> None:
    teacher, student, labels = random(6, 4, seed=1), random(6, 4, seed=2), torch.zeros(6).long()
    warm = compete_loss(3 * teacher, 3 * student, labels, temperature=3.0)
    assert torch.allclose(warm, compete_loss(teacher, student, labels))


def test_images_that_are_not_sure_of_their_class_do_not_compete() -> None:
    """Their loss is constant, so it has no gradient. Of soft targets the largest class counts."""
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0]], requires_grad=True)
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    for labels in (torch.tensor([0, 0]), torch.tensor([[0.7, 0.3], [0.9, 0.1]])):
        loss = compete_loss(teacher, student, labels, confident=0.9)
        (gradient,) = torch.autograd.grad(loss.sum(), teacher)
        assert loss[0] == 1
        assert loss[1] < 1
        assert gradient[0].abs().max() == 0
        assert gradient[1].abs().max() > 0


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0, 1e4])
def test_jensen_shannon_is_symmetric_and_bounded(scale: float) -> None:
    left, right = scale * random(50, 7, seed=1), scale * random(50, 7, seed=2)
    there, back = jensen_shannon(left, right), jensen_shannon(right, left)
    assert torch.allclose(there, back, atol=1e-6)
    assert there.min().item() >= -1e-6
    assert there.max().item() <= math.log(2) + 1e-6


def test_jensen_shannon_reaches_both_ends() -> None:
    one, other = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    assert jensen_shannon(one, one).item() == pytest.approx(0, abs=1e-6)
    assert jensen_shannon(one, other).item() == pytest.approx(math.log(2), rel=1e-5)
