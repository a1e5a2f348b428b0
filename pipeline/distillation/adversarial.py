"""Adversarial images: inputs changed so that student and teacher differ more on them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.device.compiling import compile_function
from pipeline.execution.torchrun import WHOLE, Share

EVERY = 4  # Every fourth image of a batch is changed.
BLURS = 2  # The gradient is blurred, so that shapes and shades change instead of single pixels.


def draw_distances(
    count: int, reach: float, generator: torch.Generator, share: Share = WHOLE
) -> Tensor:
    """Draw how far each image moves, uniformly from [0, ``reach``].

    Args:
        count: Number of images in this process's share of the batch.
        reach: Largest distance, in the units of the images. Nothing is drawn for 0.
        generator: Source of the random numbers, the same in every process.
        share: Part of the batch that this process holds.

    Returns:
        Distances ``[count, 1, 1, 1]``.
    """
    if not reach:
        return torch.zeros(count, 1, 1, 1)
    return reach * share.take(torch.rand(count * share.of, 1, 1, 1, generator=generator))


def perturb(images: Tensor, gradient: Tensor, distances: Tensor) -> Tensor:
    """Move images one step along the blurred gradient of the distillation loss.

    ``x + e g / rms(g)``, where ``g`` is the blurred gradient of the loss with respect to the image
    and ``e`` the distance. Virtual adversarial training (Miyato et al., "Virtual Adversarial
    Training", TPAMI 2018) takes the same step, with the student's own earlier answer as the
    target. Here the target is the teacher's answer to the changed image. A round of Adaptive
    DeepInversion takes many such steps; this function takes one.

    Args:
        images: Images ``[B, C, H, W]``, in the same units for every teacher
            (:func:`pipeline.teachers.preprocessing.image_space`).
        gradient: Gradient of the loss with respect to ``images``, ``[B, C, H, W]``.
        distances: Root mean square of each image's change, ``[B, 1, 1, 1]``.

    Returns:
        Changed images ``[B, C, H, W]``. An image whose gradient is zero stays the same.

    Example::

        images.requires_grad_()
        loss = distillation_loss(student(images), teacher(images), temperature=50.0)
        (gradient,) = torch.autograd.grad(loss, images)
        distances = draw_distances(len(images), 0.3, generator)
        harder = perturb(images.detach(), gradient, distances)
    """
    direction = gradient.float()
    for _ in range(BLURS):
        direction = F.avg_pool2d(direction, 3, stride=1, padding=1)
    size = direction.square().mean((1, 2, 3), keepdim=True).sqrt()
    direction = direction / size.clamp_min(torch.finfo(size.dtype).tiny)
    return images + distances * direction


@functools.cache
def compiled_perturb() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return :func:`perturb`, compiled."""
    return compile_function(perturb)
