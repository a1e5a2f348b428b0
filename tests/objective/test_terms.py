from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.objective import ObjectiveConfig
from pipeline.objective.bn_statistics import FeatureStatistics, LayerStatistics
from pipeline.objective.presets import PRESETS, FeatureForm, Objective
from pipeline.objective.terms import (
    VARIANCE_FLOOR,
    Terms,
    ambiguous_targets,
    classification_loss,
    compete_loss,
    draw_factors,
    evaluate_terms,
    feature_loss,
    jensen_shannon,
    l2_norm,
    total_variation,
)

SHAPES = [(1, 1, 2, 2), (2, 3, 4, 5), (3, 4, 7, 3)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: Tensor) -> np.ndarray:
    values = np.exp(logits.double().numpy() - logits.double().numpy().max(1, keepdims=True))
    return np.asarray(values / values.sum(1, keepdims=True))


def layers(count: int = 2, channels: int = 3) -> list[LayerStatistics]:
    return [
        LayerStatistics(
            mean=random(channels, seed=4 * index),
            variance=random(channels, seed=4 * index + 1).abs() + 0.1,
            running_mean=random(channels, seed=4 * index + 2),
            running_variance=random(channels, seed=4 * index + 3).abs() + 0.1,
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_total_variation_is_the_sum_of_four_norms(shape: tuple[int, int, int, int]) -> None:
    images = random(*shape)
    _, channels, height, width = shape
    for image, found in zip(images.double().numpy(), total_variation(images), strict=True):
        expected = 0.0
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            squares = 0.0
            for c in range(channels):
                for y in range(height):
                    for x in range(width):
                        if 0 <= y + down < height and 0 <= x + right < width:
                            squares += (image[c, y, x] - image[c, y + down, x + right]) ** 2
            expected += math.sqrt(squares)
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_total_variation_of_a_lone_bright_pixel() -> None:
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 3.0
    assert total_variation(image).item() == pytest.approx(4 * math.sqrt(2 * 9))


@pytest.mark.parametrize("shape", SHAPES)
def test_l2_norm_is_taken_of_each_image(shape: tuple[int, int, int, int]) -> None:
    images = random(*shape)
    expected = [math.sqrt(sum(v * v for v in image.flatten().tolist())) for image in images]
    assert l2_norm(images).tolist() == pytest.approx(expected, rel=1e-5)


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


def test_feature_loss_as_published() -> None:
    expected = 0.0
    for layer in layers():
        expected += math.sqrt(
            sum((a - b) ** 2 for a, b in zip(layer.mean, layer.running_mean, strict=True))
        )
        expected += math.sqrt(
            sum((a - b) ** 2 for a, b in zip(layer.variance, layer.running_variance, strict=True))
        )
    assert feature_loss(layers(), "published").item() == pytest.approx(expected, rel=1e-5)


def test_feature_loss_normalised() -> None:
    per_layer = []
    for layer in layers():
        errors = []
        for mean, variance, running_mean, running_variance in zip(
            layer.mean.tolist(),
            layer.variance.tolist(),
            layer.running_mean.tolist(),
            layer.running_variance.tolist(),
            strict=True,
        ):
            v = running_variance + VARIANCE_FLOOR
            errors.append(
                (mean - running_mean) ** 2 / v + math.log((variance + VARIANCE_FLOOR) / v) ** 2
            )
        per_layer.append(sum(errors) / len(errors))
    expected = sum(per_layer) / len(per_layer)
    assert feature_loss(layers(), "normalised").item() == pytest.approx(expected, rel=1e-4)


def test_normalised_feature_loss_does_not_depend_on_the_scale_of_the_features() -> None:
    factor = 50.0
    scaled = [
        LayerStatistics(
            factor * layer.mean,
            factor**2 * layer.variance,
            factor * layer.running_mean,
            factor**2 * layer.running_variance,
        )
        for layer in layers()
    ]
    plain = feature_loss(layers(), "normalised").item()
    assert feature_loss(scaled, "normalised").item() == pytest.approx(plain, rel=1e-3)
    assert feature_loss(scaled, "published").item() > 2 * feature_loss(layers(), "published").item()


@pytest.mark.parametrize("form", ["published", "normalised"])
def test_feature_loss_is_zero_where_the_statistics_match(form: FeatureForm) -> None:
    same = [
        LayerStatistics(layer.mean, layer.variance, layer.mean.clone(), layer.variance.clone())
        for layer in layers()
    ]
    assert feature_loss(same, form).item() == pytest.approx(0, abs=1e-6)
    assert feature_loss(layers(), form).item() > 0.1


def test_feature_loss_needs_a_layer() -> None:
    with pytest.raises(ValueError, match="BatchNorm"):
        feature_loss([], "published")


def test_feature_loss_of_a_batch_whose_statistics_the_network_took_over() -> None:
    batch_norm = nn.BatchNorm2d(3, momentum=1.0)
    images = 2 + 3 * random(16, 3, 6, 6)
    batch_norm(images)  # running statistics are now those of the batch
    batch_norm.eval()
    with FeatureStatistics(batch_norm) as statistics:
        batch_norm(images)
        seen = statistics.collect()
    # PyTorch keeps the unbiased variance, R_feature compares with the biased one.
    assert feature_loss(seen, "normalised").item() < 1e-4


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


def test_total_is_the_weighted_sum() -> None:
    terms = Terms(
        classification=torch.tensor([1.0, 2.0]),
        tv=torch.tensor([3.0, 4.0]),
        l2=torch.tensor([5.0, 6.0]),
        feature=torch.tensor(7.0),
        compete=torch.tensor([0.5, 0.25]),
        factors=torch.ones(2, 2),
    )
    weights = Objective(classification=2, tv=3, l2=5, feature=7, compete=11)
    expected = [2 + 9 + 25 + 49 + 5.5, 4 + 12 + 30 + 49 + 2.75]
    assert terms.total(weights).tolist() == pytest.approx(expected)
    own = replace(terms, factors=torch.tensor([[10.0, 1.0], [1.0, 100.0]]))
    own_expected = [20 + 9 + 25 + 49 + 5.5, 4 + 1200 + 30 + 49 + 2.75]
    assert own.total(weights).tolist() == pytest.approx(own_expected)
    assert replace(terms, compete=None).total(weights).tolist() == pytest.approx([85, 95])


def test_factors_are_drawn_within_their_spread() -> None:
    objective = Objective(classification_spread=1.5, tv_spread=0.5)
    factors = draw_factors(objective, 2000, torch.Generator().manual_seed(0))
    assert factors.shape == (2000, 2)
    for column, spread in zip(factors.log().unbind(1), (1.5, 0.5), strict=True):
        assert column.abs().max() <= spread
        assert column.std().item() == pytest.approx(spread / 3**0.5, rel=0.05)
        assert column.mean().item() == pytest.approx(0, abs=0.1 * spread)
    none = draw_factors(Objective(), 5, torch.Generator())
    assert torch.equal(none, torch.ones(5, 2))


@pytest.mark.parametrize("name", ["classification", "tv", "l2", "feature", "compete"])
def test_each_weight_reaches_its_own_term_only(name: str) -> None:
    off = Objective(classification=0, tv=0, l2=0, feature=0, compete=0)
    images, logits = random(2, 1, 4, 4), random(2, 3, seed=1)
    terms = evaluate_terms(
        images, torch.tensor([0, 1]), logits, layers(), random(2, 3, seed=2), off, torch.ones(2, 2)
    )
    value = getattr(terms, name)
    changes: dict[str, Any] = {name: 2.0}
    total = terms.total(replace(off, **changes))
    assert total.tolist() == pytest.approx((2 * value).expand(2).tolist())


def test_terms_without_student_or_batchnorm() -> None:
    images = random(2, 1, 4, 4)
    labels, factors = torch.tensor([0, 1]), torch.ones(2, 2)
    terms = evaluate_terms(images, labels, random(2, 3), [], None, Objective(), factors)
    assert terms.compete is None
    assert terms.feature.item() == 0


@pytest.mark.parametrize("form", ["published", "normalised"])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_gradients_of_a_constant_image_are_finite(form: FeatureForm, value: float) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    images = torch.full((2, 1, 6, 6), value, requires_grad=True)
    with FeatureStatistics(network) as statistics:
        logits = network(images)
        seen = statistics.collect()
    terms = evaluate_terms(
        images,
        torch.tensor([0, 1]),
        logits,
        seen,
        logits.detach(),
        Objective(feature_form=form),
        torch.ones(2, 2),
    )
    terms.total(Objective(tv=1, l2=1, compete=1)).mean().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()


# One norm over the published batch of 256 against a mean of norms: sqrt(256) = 16.
PUBLISHED = {
    "cifar10": Objective(
        tv=16 * 2.5e-5, l2=16 * 3e-8, feature=10.0, feature_form="published", start="white",
        learning_rate=0.05, betas=(0.9, 0.999), warmup=0, schedule="constant", jitter=2,
        flip=False, clamp=False, compete=0.0,
    ),
    "imagenet": Objective(
        tv=16 * 1e-4, l2=16 * 1e-5, feature=0.01, feature_form="published", start="white",
        learning_rate=0.25, betas=(0.5, 0.9), warmup=100, schedule="cosine", jitter=30, flip=True,
        clamp=True, compete=0.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "compete"), [("cifar10", 10.0), ("imagenet", 0.2)])
def test_presets_are_the_published_ones(data: str, compete: float) -> None:
    whole = PUBLISHED[data]
    assert PRESETS[f"deepinversion-{data}"] == whole
    assert PRESETS[f"deepdream-{data}"] == replace(whole, feature=0.0)
    assert PRESETS[f"adaptive-{data}"] == replace(whole, compete=compete)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_alone_resolves_to_itself(preset: str) -> None:
    assert ObjectiveConfig(preset=preset).over(preset) == PRESETS[preset]


def test_given_values_replace_those_of_the_preset() -> None:
    config = ObjectiveConfig(
        preset="deepinversion-imagenet", tv=0.0, betas=(0.1, 0.2), flip=False, feature=3.0
    )
    expected = replace(
        PRESETS["deepinversion-imagenet"], tv=0.0, betas=(0.1, 0.2), flip=False, feature=3.0
    )
    assert config.over(config.preset) == expected
