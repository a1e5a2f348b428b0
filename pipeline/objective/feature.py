"""The feature term R_feature: a batch must have the BatchNorm statistics of the training data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.objective.bn_statistics import LayerStatistics
from pipeline.objective.presets import FeatureForm

# Added to each variance. Keeps the ratio of variances finite for channels that are always 0.
VARIANCE_FLOOR = 1e-5


def feature_loss(layers: Sequence[LayerStatistics], form: FeatureForm) -> Tensor:
    """The distance between a batch's BatchNorm statistics and the teacher's running statistics.

    ``published`` is Eq. 4 of Yin et al. 2020, "Dreaming to Distill":
    ``R_feature = sum_l ||mu_l(x) - running_mean_l||_2 + sum_l ||sigma2_l(x) - running_var_l||_2``.

    ``normalised`` does not depend on the scale of the features, so one weight fits all teachers:
    ``R_feature = mean_l mean_c ((mu - running_mean)^2 / v + (log(sigma2 + e) - log v)^2)`` with
    ``v = running_var + e`` and ``e`` = :data:`VARIANCE_FLOOR`.

    ``l`` runs over the BatchNorm layers, ``c`` over the channels of a layer; ``mu`` and ``sigma2``
    are the mean and the variance of the layer's input over the batch and the pixels.

    Args:
        layers: The statistics of each BatchNorm layer that ran.
        form: Which of the two equations.

    Returns:
        One scalar for the whole batch, float32, at least 0.

    Raises:
        ValueError: ``layers`` is empty.

    Example::

        with FeatureStatistics(network) as statistics:
            network(images)
            loss = feature_loss(statistics.collect(), "normalised")
    """
    if not layers:
        raise ValueError("R_feature needs at least one BatchNorm layer, but no such layer ran")
    if form == "published":
        return torch.stack(
            [
                torch.linalg.vector_norm(layer.mean - layer.running_mean)
                + torch.linalg.vector_norm(layer.variance - layer.running_variance)
                for layer in layers
            ]
        ).sum()
    return torch.stack([_normalised_error(layer) for layer in layers]).mean()


def _normalised_error(layer: LayerStatistics) -> Tensor:
    variance = layer.running_variance + VARIANCE_FLOOR
    mean_error = (layer.mean - layer.running_mean).square() / variance
    variance_error = (torch.log(layer.variance + VARIANCE_FLOOR) - torch.log(variance)).square()
    return (mean_error + variance_error).mean()
