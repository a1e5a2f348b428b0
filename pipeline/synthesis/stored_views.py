"""Stored views: changed images that a shard describes, with the teacher's logits of each.

A student that has only the shards makes these views again and needs no teacher. A view is an image
mixed with another image of its shard, then shifted and perhaps mirrored. Nine numbers describe it,
and no random number is needed to make it again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.dataset.plan import ShardPlan, derive_seed
from pipeline.inversion.engine import Engine

Half = NDArray[np.float16]
FIELDS = ("partner", "top", "left", "height", "width", "down", "right", "flip", "weight")
"""The description of a view: the first columns of ``KEY.views.npy``, before the logits.

``partner``: how many places later in the shard the other image lies; after the last image of the
shard comes its first. ``weight``: the share of the image itself in the mixture of both, 0 to 1.
``top``, ``left``, ``height``, ``width``: the box in which the other image replaces the mixture.
``down``, ``right``: the place in the mixture of the view's upper left pixel; beyond an edge the
mixture is reflected. ``flip``: 1 where the view is then mirrored from left to right.
"""
MIXUP, CUTMIX = 0.5, 0.7  # probabilities, as the defaults of the section distillation
SHIFT = 8  # the largest shift is this part of a side: 4 pixels of 32
FARTHEST = 2048  # places to the partner; float16 holds all whole numbers up to it
CHUNK = 64  # views in a forward pass


def draw_views(config: Config, shard: ShardPlan) -> Half:
    """The descriptions of a shard's views. The plan and the parameters alone decide them.

    Args:
        config: all parameters. Views are mirrored only where the inversion mirrors images.
        shard: the plan of the shard.

    Returns:
        float16 ``[N, K, 9]``, in the order of :data:`FIELDS`. These numbers are exact.
    """
    synthesis, shape = config.synthesis, config.teacher.input
    images, size = len(shard.labels), (len(shard.labels), synthesis.views)
    rng = np.random.default_rng(derive_seed(synthesis.seed, shard.round, shard.number, -1))
    partner = rng.integers(min(1, images - 1), min(images - 1, FARTHEST), size, endpoint=True)
    weight = np.where(rng.random(size) < MIXUP, rng.random(size), 1.0)
    side = np.where(rng.random(size) < CUTMIX, np.sqrt(rng.random(size)), 0.0)
    height, width = np.rint(side * shape.height), np.rint(side * shape.width)
    top = np.rint(rng.random(size) * (shape.height - height))
    left = np.rint(rng.random(size) * (shape.width - width))
    reach = shape.height // SHIFT, shape.width // SHIFT
    down, right = (rng.integers(-most, most, size, endpoint=True) for most in reach)
    flip = rng.integers(0, 2, size) * config.objective.flip
    fields = partner, top, left, height, width, down, right, flip, weight
    return np.stack([np.asarray(field, np.float16) for field in fields], axis=2)


def make_view(images: Tensor, index: int, view: list[float]) -> Tensor:
    """Make one view.

    Args:
        images: all images of the shard, uint8 ``[N, C, H, W]``.
        index: the place in the shard of the image whose view it is.
        view: the nine numbers of :data:`FIELDS`.

    Returns:
        float32 ``[C, H, W]``, in the range of the pixels.
    """
    partner, top, left, height, width, down, right, flip = map(int, view[:8])
    weight, other = view[8], images[(index + partner) % len(images)].float()
    mixture: Tensor = weight * images[index] + (1 - weight) * other
    box = (..., slice(top, top + height), slice(left, left + width))
    mixture[box] = other[box]
    rows, columns = (
        _reflected(first, side)
        for first, side in zip((down, right), mixture.shape[1:], strict=True)
    )
    shown: Tensor = mixture[:, rows[:, None], columns.flip(0) if flip else columns]
    return shown


def answer_views(engine: Engine, pixels: Tensor, views: Half) -> Tensor:
    """The teacher's logits of all views of a shard, in float32.

    Args:
        engine: the teacher, inside its ``with`` block.
        pixels: all images of the shard, uint8 ``[N, C, H, W]``, on the CPU.
        views: what :func:`draw_views` returned for the shard.

    Returns:
        float32 ``[N, K, classes]`` on the CPU.
    """
    every = _each_view(pixels, views)
    total = len(pixels) * views.shape[1]
    logits = []
    for start in range(0, total, CHUNK):
        part = torch.stack([next(every) for _ in range(min(CHUNK, total - start))])
        images = engine.space.pixels.normalise(part.to(engine.teacher.device))
        logits.append(engine.answers(images).cpu())
    of_images: Tensor = torch.cat(logits).unflatten(0, (len(pixels), views.shape[1]))
    return of_images


def store_views(engine: Engine, pixels: Tensor, views: Half) -> Half:
    """The members ``KEY.views.npy`` of a shard: descriptions and logits.

    The arguments are those of :func:`answer_views`.

    Returns:
        float16 ``[N, K, 9 + classes]``.
    """
    logits: Half = answer_views(engine, pixels, views).half().numpy()
    return np.concatenate([views, logits], axis=2)


def _each_view(pixels: Tensor, views: Half) -> Iterator[Tensor]:
    for index, of_image in enumerate(views.tolist()):
        for view in of_image:
            yield make_view(pixels, index, view)


def _reflected(first: int, side: int) -> Tensor:
    """The places ``first`` to ``first + side - 1`` on an axis, reflected at its two ends."""
    places = (torch.arange(side) + first).abs()
    return side - 1 - (side - 1 - places).abs()
