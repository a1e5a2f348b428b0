"""Random augmentation of a batch before teacher and student see it.

All random numbers come from one generator. Each process draws them for the whole batch and keeps
those of its share, and an image mixes only with images of its group of four. Several processes
therefore make the same augmented batch as one process would. Only a few numbers are drawn on the
CPU and copied to a GPU without waiting; masks and indices are built on the GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.distillation import DistillationConfig
from pipeline.execution.torchrun import WHOLE, Share

GROUP = 4  # Neighbours that mix with each other. Batches are shuffled, so any group is random.


def augment(
    images: Tensor, config: DistillationConfig, generator: torch.Generator, share: Share = WHOLE
) -> Tensor:
    """Shift, flip and cut out images, then apply mixup and CutMix with their probabilities.

    Labels are not mixed, because the teacher is evaluated on the mixed images.

    Args:
        images: Images ``[B, C, H, W]`` in fixed units, this process's share of the batch.
        config: Fields ``shift``, ``flip``, ``cutout``, ``mixup`` and ``cutmix``.
        generator: Source of the random numbers, the same in every process.
        share: Part of the batch that this process holds.

    Returns:
        Augmented images ``[B, C, H, W]``.

    Example::

        generator = torch.Generator().manual_seed(0)
        images = augment(images, DistillationConfig(shift=4, flip=True), generator)
    """
    images = shift_and_flip(images, config.shift, config.flip, generator, share)
    if config.cutout:
        images = cutout(images, config.cutout, generator, share)
    if _happens(config.mixup, generator):
        images = mixup(images, generator, share)
    if _happens(config.cutmix, generator):
        images = cutmix(images, generator)
    return images


def shift_and_flip(
    images: Tensor, shift: int, flip: bool, generator: torch.Generator, share: Share = WHOLE
) -> Tensor:
    """Shift each image at random and mirror half of the images.

    Args:
        images: Images ``[B, C, H, W]``.
        shift: Largest shift in pixels along each axis. The edge is filled by reflection.
        flip: Whether to mirror images from left to right with probability 1/2.
        generator: Source of the random numbers, the same in every process.
        share: Part of the batch that this process holds.

    Returns:
        Images ``[B, C, H, W]``.
    """
    count, channels, height, width = images.shape
    shift = min(shift, height - 1, width - 1)
    total = count * share.of
    offsets = torch.randint(0, 2 * shift + 1, (2, total), generator=generator)
    flips = torch.randint(0, 2, (total,), generator=generator)
    draws = share.take(torch.stack([*offsets, flips], 1)).to(images.device, non_blocking=True)
    down, right, flipped = draws[:, :, None].unbind(1)
    padded = F.pad(images, (shift, shift, shift, shift), mode="reflect") if shift else images
    rows = down + torch.arange(height, device=images.device)
    columns = right + torch.arange(width, device=images.device)
    columns = torch.where(flipped.bool() & flip, columns.flip(1), columns)
    index = torch.arange(count, device=images.device)[:, None, None, None]
    depth = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[index, depth, rows[:, None, :, None], columns[:, None, None, :]]


def cutout(images: Tensor, side: int, generator: torch.Generator, share: Share = WHOLE) -> Tensor:
    """Blank one square in each image (DeVries and Taylor, arXiv 1708.04552, 2017).

    The square's centre is uniform over the image, so that the square may reach over the edge. The
    square becomes 0, a grey of 0.45.

    Args:
        images: Images ``[B, C, H, W]`` in fixed units.
        side: Side of the square in pixels.
        generator: Source of the random numbers, the same in every process.
        share: Part of the batch that this process holds.

    Returns:
        Images ``[B, C, H, W]``.
    """
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
    """Mix each image with its neighbour (Zhang et al., "mixup", ICLR 2018, with alpha 1).

    ``a x_i + (1 - a) x_j``, with a uniform ``a`` in [0, 1] for each image.

    Args:
        images: Images ``[B, C, H, W]``.
        generator: Source of the random numbers, the same in every process.
        share: Part of the batch that this process holds.

    Returns:
        Mixed images ``[B, C, H, W]``.
    """
    draws = torch.rand(len(images) * share.of, 1, 1, 1, generator=generator)
    weight = share.take(draws).to(images.device, non_blocking=True)
    return weight * images + (1 - weight) * images[_partners(images, 1)]


def cutmix(images: Tensor, generator: torch.Generator) -> Tensor:
    """Replace one box of each image by the same box of another (Yun et al., "CutMix", ICCV 2019).

    The whole batch shares one box. The box's area is uniform in [0, 1] of the image's area.

    Args:
        images: Images ``[B, C, H, W]``.
        generator: Source of the random numbers, the same in every process.

    Returns:
        Mixed images ``[B, C, H, W]``.
    """
    height, width = images.shape[2:]
    area, top, left = torch.rand(3, generator=generator).tolist()
    box_height, box_width = round(height * area**0.5), round(width * area**0.5)
    top, left = round(top * (height - box_height)), round(left * (width - box_width))
    box = (..., slice(top, top + box_height), slice(left, left + box_width))
    mixed = images.clone()
    mixed[box] = images[_partners(images, 2)][box]
    return mixed


def _partners(images: Tensor, distance: int) -> Tensor:
    """Return the index of another image of the same group of four, for each image.

    ``distance`` is 1 or 2. An image whose partner would lie after the batch's end is its own
    partner.
    """
    own = torch.arange(len(images), device=images.device)
    other = own ^ distance
    return torch.where(other < len(images), other, own)


def _happens(probability: float, generator: torch.Generator) -> bool:
    return torch.rand(1, generator=generator).item() < probability
