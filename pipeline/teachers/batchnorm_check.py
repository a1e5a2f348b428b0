"""Check that a teacher's BatchNorm statistics are trained and fit the configured input."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.objective.bn_statistics import (
    FeatureStatistics,
    batchnorm_layers,
    running,
    untrained_layers,
)
from pipeline.teachers.teacher import Teacher

log = logging.getLogger(__name__)
# A forgotten division by 255 changes variances 65,025-fold. A forgotten mean and std changes them
# 20-fold, which cannot be told from the normal difference between test images and training data.
FARTHEST = 1000.0
# Running variances (median, largest of a layer) that R_feature can match, and usual ones.
_USABLE, _USUAL = (0.0, 1e30), (1e-12, 1e12)
_MOST_IMAGES, _MOST_PIXELS = 32, 2**17  # a second or two for a large network on a CPU


def check_soundness(teacher: Teacher, random: bool = False) -> None:
    """Check the running statistics that R_feature would match.

    Args:
        teacher: The loaded teacher.
        random: Whether the parameters ask for random weights. Untrained statistics are then only
            a warning.

    Raises:
        UserError: The statistics were never trained, no BatchNorm layer is called, or the variance
            of test images at the first layer differs more than ``FARTHEST``-fold from the running
            variance.
    """
    layers, untrained = batchnorm_layers(teacher.network), untrained_layers(teacher.network)
    if not layers:
        log.warning("%s", expectation(teacher.network))
        return
    if len(untrained) == len(layers) and not random:
        raise UserError(
            "the teacher's BatchNorm statistics were never trained (mean 0 and variance 1 in all "
            f"{len(layers)} layers): name trained weights, or set "
            "synthesis.objective.feature to 0"
        )
    if untrained:
        log.warning(
            "%d of the teacher's %d BatchNorm layers were never trained",
            len(untrained),
            len(layers),
        )
    if len(untrained) == len(layers):
        return
    factor = range_factor(teacher)
    if factor is None:
        raise UserError(
            f"none of the teacher's {len(layers)} BatchNorm layers is called in its forward pass, "
            "so R_feature has no statistics to match: call the layers as modules, or set "
            "synthesis.objective.preset to without-batchnorm and synthesis.objective.feature to 0"
        )
    off = not 1 / FARTHEST < factor < FARTHEST
    _check_variances(teacher.network, _USUAL if off else _USABLE)
    if off:
        raise UserError(
            f"teacher.input.mean and std are obviously off: the variance at the first BatchNorm "
            f"layer is {factor:.2g} times the running variance. Both describe pixels / 255, even "
            "if the teacher was trained on pixels of 0 to 255"
        )


def _check_variances(network: nn.Module, limits: tuple[float, float]) -> None:
    """Refuse a layer whose median running variance, or the largest, is beyond its limit.

    Raises:
        UserError: It names the layer.
    """
    layers = batchnorm_layers(network)
    for name, module in network.named_modules():
        if module not in layers:
            continue
        variance = running(module)[1].float()
        median, largest = float(variance.median()), float(variance.max())
        if median < limits[0] or largest > limits[1]:
            wrong = f"median {median:.2g}" if median < limits[0] else f"largest {largest:.2g}"
            raise UserError(
                f"the teacher's BatchNorm layer {name} has running variances that no training "
                f"leaves ({wrong}): name undamaged weights"
            )


def expectation(network: nn.Module) -> str:
    """The warning for a teacher without BatchNorm layers."""
    normalised = any(
        isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.InstanceNorm2d)
        or "norm" in type(module).__name__.lower()
        for module in network.modules()
    )
    why = "" if normalised else " (or it was folded into the convolutions: name the unfolded one)"
    return (
        f"the teacher has no BatchNorm{why}: its images are made from its logits and priors alone, "
        "resemble its training data less, and teach a student less"
    )


def range_factor(teacher: Teacher) -> float | None:
    """The variance of test images at the first BatchNorm layer, over its running variance.

    The test images are random, with coarse and fine structure over the range of pixels.

    Returns:
        The median ratio over the layer's channels, or None where no BatchNorm layer is called.
    """
    generator = torch.Generator().manual_seed(0)
    images = _test_images(teacher, generator)
    with torch.no_grad(), FeatureStatistics(teacher.network) as statistics:
        teacher.network(images)
        seen = statistics.collect()
    if not seen:
        return None
    ratio = (seen[0].variance + 1e-12) / (seen[0].running_variance + 1e-12)
    return float(ratio.median())


def _test_images(teacher: Teacher, generator: torch.Generator) -> Tensor:
    channels, height, width = teacher.shape
    grid = (max(2, round(height / 5)), max(2, round(width / 5)))
    count = max(2, min(_MOST_IMAGES, _MOST_PIXELS // (height * width)))
    coarse = torch.rand(count, channels, *grid, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    fine = torch.rand(count, channels, height, width, generator=generator)
    pixels = (255 * (0.8 * smooth + 0.2 * fine)).round().to(torch.uint8)
    return teacher.preprocessing.normalise(pixels.to(teacher.device))
