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
    competing = compete_loss(teacher, student).tolist()
    assert competing == pytest.approx((1 - expected).tolist(), abs=1e-6)
    same = p.argmax(1) == q.argmax(1)
    assert 0 < same.sum() < 6
    masked = compete_loss(teacher, student, masked=True).tolist()
    assert masked == pytest.approx(((1 - expected) * same).tolist(), abs=1e-6)


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
