"""Random changes to a batch before teacher and student see it, all drawn from one generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import DistillationConfig


def augment(images: Tensor, config: DistillationConfig, generator: torch.Generator) -> Tensor:
    """Shift, flip, then with the configured odds mixup and CutMix. ``[B, C, H, W]`` to the same.

    Labels need no mixing: the teacher is asked about the mixed images themselves.
    """
    images = shift_and_flip(images, config.shift, config.flip, generator)
    if _chance(config.mixup, generator):
        images = mixup(images, generator)
    if _chance(config.cutmix, generator):
        images = cutmix(images, generator)
    return images


def shift_and_flip(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image moved by up to ``shift`` pixels, edges mirrored in, and flipped half the time."""
    count, channels, height, width = images.shape
    shift = min(shift, height - 1, width - 1)
    offsets = torch.randint(0, 2 * shift + 1, (2, count), generator=generator)
    flips = torch.randint(0, 2, (count,), generator=generator).bool() & flip
    padded = F.pad(images, (shift, shift, shift, shift), mode="reflect") if shift else images
    rows = offsets[0][:, None] + torch.arange(height)
    columns = offsets[1][:, None] + torch.arange(width)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    index = torch.arange(count)[:, None, None, None]
    rows, columns, index = (t.to(images.device) for t in (rows, columns, index))
    depth = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[index, depth, rows[:, None, :, None], columns[:, None, None, :]]


def mixup(images: Tensor, generator: torch.Generator) -> Tensor:
    """``a x_i + (1 - a) x_j`` with a uniform ``a`` for each image (Zhang et al. 2018, alpha 1)."""
    share = torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device)
    return share * images + (1 - share) * images[_partners(images, generator)]


def cutmix(images: Tensor, generator: torch.Generator) -> Tensor:
    """One box, its area uniform, comes from another image of the batch (Yun et al. 2019)."""
    height, width = images.shape[2:]
    area, top, left = torch.rand(3, generator=generator).tolist()
    box_height, box_width = round(height * area**0.5), round(width * area**0.5)
    top, left = round(top * (height - box_height)), round(left * (width - box_width))
    box = (..., slice(top, top + box_height), slice(left, left + box_width))
    mixed = images.clone()
    mixed[box] = images[_partners(images, generator)][box]
    return mixed


def _partners(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(images), generator=generator).to(images.device)


def _chance(probability: float, generator: torch.Generator) -> bool:
    return torch.rand(1, generator=generator).item() < probability
