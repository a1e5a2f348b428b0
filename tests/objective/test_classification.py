from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.objective.classification import ambiguous_targets, classification_loss
from tests.objective.samples import random, softmax


def test_classification_loss_is_the_cross_entropy_of_each_image() -> None:
    logits, labels = 3 * random(4, 5), torch.tensor([0, 4, 2, 2])
    expected = -np.log(softmax(logits)[np.arange(4), labels.numpy()])
    assert classification_loss(logits, labels).tolist() == pytest.approx(expected.tolist(), 1e-5)


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_ambiguous_targets_give_one_other_class_a_share(classes: int) -> None:
    labels = torch.arange(500) % classes
    targets = ambiguous_targets(labels, classes, 0.4, torch.Generator().manual_seed(0))
    assert targets.shape == (500, classes)
    torch.testing.assert_close(targets.sum(1), torch.ones(500))
    share = 1 - targets.gather(1, labels[:, None])[:, 0]
    if classes == 1:
        assert share.abs().max() < 1e-6
        return
    assert share.min() >= 0 and share.max() <= 0.4 + 1e-6
    assert share.mean().item() == pytest.approx(0.2, abs=0.02)
    assert ((targets > 0).sum(1) <= 2).all()
    others = targets.scatter(1, labels[:, None], 0.0).argmax(1)
    assert set(others.tolist()) == set(range(classes))
    by_hand = -(targets * random(500, classes).log_softmax(1)).sum(1)
    torch.testing.assert_close(classification_loss(random(500, classes), targets), by_hand)
