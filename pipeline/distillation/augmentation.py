"""Random changes to a batch before teacher and student see it, all drawn from one generator.

Everything is drawn for the whole batch, and then cut to the share that this process has of it; no
image mixes with one outside its own four. So several processes make of a batch what one would. What
is drawn is little, and copied to a GPU without waiting; masks and indices are made there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.distillation import DistillationConfig
from pipeline.execution.torchrun import WHOLE, Share

GROUP = 4  # neighbours that mix with each other: of a shuffled batch, as good as any


def augment(
    images: Tensor, config: DistillationConfig, generator: torch.Generator, share: Share = WHOLE
) -> Tensor:
    """Shift, flip, cut out, then with the configured odds mixup and CutMix.

    ``[B, C, H, W]`` to the same; ``images`` are ``share`` of a batch. Labels need no mixing: the
    teacher is asked about the mixed images themselves.
    """
    images = shift_and_flip(images, config.shift, config.flip, generator, share)
    if config.cutout:
        images = cutout(images, config.cutout, generator, share)
    if _chance(config.mixup, generator):
        images = mixup(images, generator, share)
    if _chance(config.cutmix, generator):
        images = cutmix(images, generator)
    return images


def shift_and_flip(
    images: Tensor, shift: int, flip: bool, generator: torch.Generator, share: Share = WHOLE
) -> Tensor:
    """Each image moved by up to ``shift`` pixels, edges mirrored in, and flipped half the time."""
    count, channels, height, width = images.shape
    shift = min(shift, height - 1, width - 1)
    total = count * share.of
    offsets = torch.randint(0, 2 * shift + 1, (2, total), generator=generator)
    flips = torch.randint(0, 2, (total,), generator=generator)
    drawn = share.take(torch.stack([*offsets, flips], 1)).to(images.device, non_blocking=True)
    down, right, flipped = drawn[:, :, None].unbind(1)
    padded = F.pad(images, (shift, shift, shift, shift), mode="reflect") if shift else images
    rows = down + torch.arange(height, device=images.device)
    columns = right + torch.arange(width, device=images.device)
    columns = torch.where(flipped.bool() & flip, columns.flip(1), columns)
    index = torch.arange(count, device=images.device)[:, None, None, None]
    depth = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[index, depth, rows[:, None, :, None], columns[:, None, None, :]]


def cutout(images: Tensor, side: int, generator: torch.Generator, share: Share = WHOLE) -> Tensor:
    """A square of ``side`` pixels, less where it leaves the image, becomes the teacher's mean
    (DeVries and Taylor 2017)."""
    count, _, *sides = images.shape
    draws = share.take(torch.rand(count * share.of, 2, generator=generator))
    draws = draws.to(images.device, non_blocking=True)
    inside = []
    for draw, length in zip(draws.unbind(1), sides, strict=True):
        start = (draw * length).floor()[:, None] - side // 2
        place = torch.arange(length, device=images.device)
        inside.append((place >= start) & (place < start + side))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole, 0.0)


def mixup(images: Tensor, generator: torch.Generator, share: Share = WHOLE) -> Tensor:
    """``a x_i + (1 - a) x_j`` with a uniform ``a`` for each image (Zhang et al. 2018, alpha 1)."""
    drawn = torch.rand(len(images) * share.of, 1, 1, 1, generator=generator)
    weight = share.take(drawn).to(images.device, non_blocking=True)
    return weight * images + (1 - weight) * images[_partners(images, 1)]


def cutmix(images: Tensor, generator: torch.Generator) -> Tensor:
    """One box, its area uniform, comes from another image of the batch (Yun et al. 2019)."""
    height, width = images.shape[2:]
    area, top, left = torch.rand(3, generator=generator).tolist()
    box_height, box_width = round(height * area**0.5), round(width * area**0.5)
    top, left = round(top * (height - box_height)), round(left * (width - box_width))
    box = (..., slice(top, top + box_height), slice(left, left + box_width))
    mixed = images.clone()
    mixed[box] = images[_partners(images, 2)][box]
    return mixed


def _partners(images: Tensor, distance: int) -> Tensor:
    """Another one of the same four, at distance 1 or 2; itself where the batch ends before it."""
    own = torch.arange(len(images), device=images.device)
    other = own ^ distance
    return torch.where(other < len(images), other, own)


def _chance(probability: float, generator: torch.Generator) -> bool:
    return torch.rand(1, generator=generator).item() < probability
