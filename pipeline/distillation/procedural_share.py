"""Procedural pictures among the images that a student learns from."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.execution.torchrun import WHOLE, Share
from pipeline.procedural import procedural_pixels


def replace_images(
    pixels: Tensor, probability: float, generator: torch.Generator, share: Share = WHOLE
) -> Tensor:
    """Replace each image, with a probability, by a new procedural picture.

    The pictures cost almost nothing and never repeat, so a student of few images sees the teacher's
    answers on many more inputs. No label is needed, because the teacher is evaluated on the
    pictures. Frank and Davis, "What Makes a Good Dataset for Knowledge Distillation?", CVPR 2025,
    teach students by such pictures alone.

    Args:
        pixels: This process's share of the batch, uint8 ``[B, C, H, W]``, on the CPU.
        probability: The probability for each image, 0 to 1.
        generator: Source of the random numbers, the same in every process.
        share: Part of the batch that this process holds.

    Returns:
        The batch, uint8 ``[B, C, H, W]``: a copy, or ``pixels`` itself where nothing is replaced.

    Example::

        batch = replace_images(batch, 0.5, torch.Generator().manual_seed(0))
    """
    if not probability:
        return pixels
    chosen = torch.rand(len(pixels) * share.of, generator=generator) < probability
    _, channels, height, width = pixels.shape
    pictures = procedural_pixels(int(chosen.sum()), (channels, height, width), generator)
    replaced = pixels.clone()
    # Every process draws the pictures of the whole batch, so that all processes agree.
    numbers = share.take(chosen.cumsum(0) - 1)
    own = share.take(chosen)
    replaced[own] = pictures[numbers[own]]
    return replaced
