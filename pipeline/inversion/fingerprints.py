"""Similarity of images: fingerprints, their cosines, and the search for near-duplicates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 8  # largest height and width of the small copies, in pixels


def centred(pixels: Tensor) -> Tensor:
    """Shrink images to at most 8 x 8 and subtract each one's mean.

    Args:
        pixels: uint8 ``[N, C, H, W]``.

    Returns:
        Vectors, float32 ``[N, D]`` with D at most ``C * 64``.
    """
    height, width = pixels.shape[2:]
    sides = (min(height, SIDE), min(width, SIDE))
    small = F.adaptive_avg_pool2d(pixels.float(), sides).flatten(1)
    return small - small.mean(1, keepdim=True)


def fingerprints(pixels: Tensor) -> Tensor:
    """The vectors of :func:`centred` at length 1. The product of two is the images' cosine.

    Args:
        pixels: uint8 ``[N, C, H, W]``.

    Returns:
        Vectors, float32 ``[N, D]``.

    Example:
        >>> pixels = torch.tensor([[[[0, 100], [0, 100]]], [[[50, 150], [50, 150]]]]).byte()
        >>> found = fingerprints(pixels)  # the second image is the first one, brighter
        >>> round(float(found[0] @ found[1]), 3)
        1.0
    """
    return F.normalize(centred(pixels), dim=1)


def largest_cosine(pixels: Tensor, kept: Tensor) -> Tensor:
    """The cosine of each image with the most similar of ``kept``.

    Args:
        pixels: uint8 ``[N, C, H, W]``.
        kept: Fingerprints, ``[M, D]`` with M at least 1.

    Returns:
        Cosines, ``[N]``, in [-1, 1].
    """
    return (fingerprints(pixels) @ kept.T).max(1).values


def joined(before: Tensor | None, more: Tensor) -> Tensor:
    """The rows of both, where ``before`` may be None."""
    return more if before is None else torch.cat([before, more])


class Duplicates:
    """Finds images of a batch that are too similar to an image that is kept already.

    Args:
        pixels: The images of the batch, uint8 ``[B, C, H, W]``.
        limit: The largest cosine that is allowed. None allows all.
        before: The fingerprints of images that were kept earlier, or None.
    """

    def __init__(self, pixels: Tensor, limit: float | None, before: Tensor | None) -> None:
        self._limit = limit
        if limit is not None:
            self._prints = fingerprints(pixels)
            # Rows of zeros are free places: their cosine with any image is 0.
            self._kept = joined(before, torch.zeros_like(self._prints))
            self._end = len(self._kept) - len(pixels)

    def is_duplicate(self, row: int) -> bool:
        """Whether the image of ``row`` is too similar to a kept image."""
        if self._limit is None:
            return False
        return bool((self._kept @ self._prints[row]).max() > self._limit)

    def keep(self, row: int) -> None:
        """Add the image of ``row`` to the kept images."""
        if self._limit is not None:
            self._kept[self._end] = self._prints[row]
            self._end += 1
