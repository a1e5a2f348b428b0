"""Teachers without labels: networks that are no classifiers and may return anything.

Their images follow from BatchNorm statistics. Hooks read these statistics in the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, first_line
from pipeline.objective.bn_statistics import FeatureStatistics, LayerStatistics, batchnorm_layers
from pipeline.teachers.user_code import taking_images

_COUNT = 2  # images of the check
_SAME = 1e-4  # two forward passes may differ by this share of the largest mean


class Unlabelled(nn.Module):
    """Wraps a network that is no classifier, as a classifier of one class.

    The forward pass runs the network and drops its output. Each image gets the logit 0. So the one
    class has the probability 1, and the cross-entropy has no gradient.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Run the network on images ``[B, C, H, W]``, and return zeros ``[B, 1]``."""
        self.network(images)
        return images.new_zeros(len(images), 1)


def check_statistics(
    network: nn.Module, shape: tuple[int, int, int], normalise: Callable[[Tensor], Tensor]
) -> None:
    """Check that the same images always give the same BatchNorm statistics, with a gradient.

    Args:
        network: A network in eval mode, on the CPU.
        shape: Channels, height and width of an image.
        normalise: Turns uint8 pixels ``[B, C, H, W]`` into the network's input.

    Raises:
        UserError: The network has no BatchNorm layer, does not take the images, or its statistics
            cannot be matched.
    """
    layers = batchnorm_layers(network)
    if not layers:
        raise UserError(
            "the teacher has no BatchNorm layer with running statistics. With teacher.labels: none "
            "its images follow from these statistics alone: name a network whose BatchNorm layers "
            "were not folded into the convolutions, or a classifier with teacher.labels: class"
        )
    if any(layer.training for layer in layers):
        raise UserError(
            "a BatchNorm layer of the teacher is in training mode even after eval(): remove what "
            "keeps it there"
        )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (_COUNT, *shape), generator=generator, dtype=torch.uint8)
    images = normalise(pixels).requires_grad_(True)
    given = images.detach().clone()
    with torch.enable_grad(), taking_images(network, shape, "teacher"):
        statistics = _statistics(network, images)
    if not statistics:
        raise UserError(
            f"none of the teacher's {len(layers)} BatchNorm layers is called in its forward pass, "
            "so R_feature has no statistics to match: call the layers as modules"
        )
    _check_gradient(statistics, images)
    if not torch.equal(images.detach(), given):
        raise UserError(
            "the teacher's forward pass changes its input in place: replace the in-place "
            "operation, as x.mul_(0.5) by x * 0.5"
        )
    with torch.no_grad():
        again = _statistics(network, given)
    if not _same(statistics, again):
        raise UserError(
            "the teacher is not a fixed function: the same images get other BatchNorm statistics "
            "each time. Remove random numbers, and what its forward pass remembers from call to "
            "call"
        )


def _statistics(network: nn.Module, images: Tensor) -> list[LayerStatistics]:
    with FeatureStatistics(network) as statistics:
        network(images)
        return statistics.collect()


def _check_gradient(statistics: list[LayerStatistics], images: Tensor) -> None:
    if not all(bool(layer.mean.isfinite().all()) for layer in statistics):
        raise UserError(
            "the teacher answers random images with NaN or infinite inputs of a BatchNorm layer"
        )
    try:
        total = torch.stack([layer.mean.sum() + layer.variance.sum() for layer in statistics]).sum()
        gradient = torch.autograd.grad(total, images, allow_unused=True)[0]
    except RuntimeError as error:
        raise UserError(
            "the teacher's BatchNorm statistics have no gradient with respect to the image "
            f"({first_line(error)}): remove torch.no_grad(), detach() and in-place operations from "
            "its forward pass"
        ) from error
    if gradient is None or not bool(gradient.any()):
        raise UserError("the teacher's BatchNorm statistics do not depend on the image")


def _same(left: list[LayerStatistics], right: list[LayerStatistics]) -> bool:
    return len(left) == len(right) and all(
        bool((a.mean - b.mean).abs().max() <= _SAME * b.mean.abs().max().clamp_min(1e-12))
        for a, b in zip(left, right, strict=True)
    )
