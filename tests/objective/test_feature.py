from __future__ import annotations

import math

import pytest
from torch import nn

from pipeline.objective.bn_statistics import FeatureStatistics, LayerStatistics
from pipeline.objective.feature import VARIANCE_FLOOR, feature_loss
from pipeline.objective.presets import FeatureForm
from tests.objective.samples import layers, random


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
