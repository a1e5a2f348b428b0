"""Networks that are no classifiers: what they may return, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.teachers.unlabelled import Unlabelled, check_statistics
from tests.conftest import Params, changed, load

SHAPE = (1, 8, 8)


class Net(nn.Module):
    """A convolution, BatchNorm, and an end that a test chooses."""

    def __init__(self, end: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.end = end

    def forward(self, images: Tensor) -> Any:
        return self.end(self, images)


def check(end: Callable[[Net, Tensor], Any]) -> None:
    network = Net(end).eval().requires_grad_(False)
    check_statistics(network, SHAPE, lambda pixels: pixels.float() / 255)


def features(net: Net, images: Tensor) -> Tensor:
    result: Tensor = net.norm(net.first(images))
    return result


@pytest.mark.parametrize(
    "end",
    [
        lambda net, images: {"out": features(net, images)},
        lambda net, images: [features(net, images), "text", None],
        lambda net, images: features(net, images).argmax(),
    ],
)
def test_a_network_may_return_anything(end: Callable[[Net, Tensor], Any]) -> None:
    check(end)


def _in_place(net: Net, images: Tensor) -> Tensor:
    with torch.no_grad():
        images.mul_(0.5)
    return features(net, images)


def _without_gradient(net: Net, images: Tensor) -> Tensor:
    with torch.no_grad():
        return features(net, images)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda net, images: net.first(images), "none of the teacher's 1 BatchNorm layers"),
        (lambda net, images: net.norm(net.first(images.repeat(1, 2, 1, 1))), "cannot take images"),
        (lambda net, images: features(net, 0 * images), "do not depend on"),
        (
            lambda net, images: features(net, images + torch.rand_like(images)),
            "not a fixed function",
        ),
        (lambda net, images: features(net, images / 0), "NaN or infinite"),
        (_in_place, "changes its input in place"),
        (_without_gradient, "have no gradient"),
    ],
)
def test_statistics_that_cannot_be_matched_are_refused(
    end: Callable[[Net, Tensor], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check(end)


def test_batchnorm_in_training_mode_is_refused() -> None:
    network = Net(features).train()
    with pytest.raises(UserError, match="in training mode even after eval"):
        check_statistics(network, SHAPE, Tensor.float)


def test_a_network_without_batchnorm_is_refused_before_any_work(unlabelled: Params) -> None:
    source = unlabelled["teacher"]["source"].replace("segmenter", "without_batchnorm")
    with pytest.raises(UserError, match="no BatchNorm layer with running statistics"):
        load(changed(unlabelled, {"teacher.source": source}))


def test_an_objective_without_statistics_is_refused(unlabelled: Params) -> None:
    with pytest.raises(UserError, match=r"synthesis.objective.feature is 0, and teacher.labels"):
        load(changed(unlabelled, {"synthesis.objective.feature": 0}))


def test_it_stands_for_a_classifier_of_one_class() -> None:
    logits = Unlabelled(Net(features))(torch.zeros(3, *SHAPE))
    assert torch.equal(logits, torch.zeros(3, 1))


def test_its_digest_is_another_than_that_of_the_classifier(
    tiny: Params, unlabelled: Params
) -> None:
    section = {**tiny["teacher"], "labels": "none", "classes": None, "class_names": None}
    _, encoder = load({**unlabelled, "teacher": section})
    _, classifier = load(tiny)
    assert (encoder.labelled, classifier.labelled) == (False, True)
    assert encoder.parts["weights"] == classifier.parts["weights"]
    assert encoder.digest != classifier.digest
