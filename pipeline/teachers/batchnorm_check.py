"""Whether a teacher's BatchNorm statistics can be used: trained ones, on input like ours."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.objective.bn_statistics import FeatureStatistics, batchnorm_layers, untrained_layers
from pipeline.teachers.teacher import Teacher

log = logging.getLogger(__name__)
# A forgotten division by 255 changes variances 65,025-fold; a forgotten mean and std 20-fold,
# about as much as the first layer of a sound network may differ from what these images give it.
FARTHEST = 1000.0
_MOST_IMAGES, _MOST_PIXELS = 32, 2**17  # a second or two for a large network on a CPU


def check_soundness(teacher: Teacher, random: bool = False) -> None:
    """Look at the statistics that R_feature would match.

    ``random`` weights were asked for: that they are untrained is then no more than a warning.

    Raises:
        UserError: they were never trained, or input of the configured range is nothing like what
            they were trained on.
    """
    layers, untrained = batchnorm_layers(teacher.network), untrained_layers(teacher.network)
    if not layers:
        log.warning("%s", expectation(teacher.network))
        return
    if len(untrained) == len(layers) and not random:
        raise UserError(
            "the teacher's BatchNorm statistics were never trained (mean 0 and variance 1 in all "
            f"{len(layers)} layers): bring trained weights, or set "
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
            "and nothing can be matched to them: call them there as modules, or set "
            "synthesis.objective.preset to without-batchnorm and synthesis.objective.feature to 0"
        )
    if not 1 / FARTHEST < factor < FARTHEST:
        raise UserError(
            f"teacher.input.mean and std are obviously off: the variance at the first BatchNorm "
            f"layer is {factor:.2g} times what the teacher was trained on (they are of pixels / "
            "255, also where the teacher was trained on pixels of 0 to 255)"
        )


def expectation(network: nn.Module) -> str:
    """One line on what to expect of a teacher without BatchNorm."""
    normalised = any(
        isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.InstanceNorm2d)
        or "norm" in type(module).__name__.lower()
        for module in network.modules()
    )
    why = "" if normalised else " (or it was folded into the convolutions: bring the unfolded one)"
    return (
        f"the teacher has no BatchNorm{why}: images follow from priors and its answers alone, "
        "are less like its training data, and teach a student less"
    )


def range_factor(teacher: Teacher) -> float | None:
    """Variance of our images at the first BatchNorm layer that runs, over its running variance.

    The median over its channels, of images that fill the range of pixels coarsely and finely.
    None where no layer runs.
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
