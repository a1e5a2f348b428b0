"""Procedural pictures among the images that a student learns from."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from pipeline.dataset.plan import derive_seed
from pipeline.execution.torchrun import WHOLE, Share
from pipeline.procedural import procedural_pixels

BLOCK_BYTES, MOST_STEPS = 2**23, 64  # pictures of several steps are drawn at once: that is faster


class ProceduralShare:
    """Replaces a part of each batch by procedural pictures that never repeat.

    The pictures cost almost nothing, so a student of few images sees the teacher's answers on many
    more inputs. No label is needed, because the teacher is evaluated on the pictures. Frank and
    Davis, "What Makes a Good Dataset for Knowledge Distillation?", CVPR 2025, teach students by
    such pictures alone.

    Args:
        part: The part of a batch that is replaced, 0 to 1.
        seed: With the number of the step it decides the pictures and their places.
        share: The part of every batch that this process holds.
        ahead: Whether a thread draws the next pictures while these are in use, for a training on a
            GPU.

    Example::

        pictures = ProceduralShare(0.5, seed=0)
        batch = pictures.replace(number, batch)
    """

    def __init__(self, part: float, seed: int, share: Share = WHOLE, ahead: bool = False) -> None:
        self._part, self._seed, self._share = part, seed, share
        self._thread = ThreadPoolExecutor(1, "pictures") if ahead and part else None
        self._block: tuple[int, Tensor] | None = None
        self._next: tuple[int, Future[Tensor]] | None = None

    def replace(self, number: int, pixels: Tensor) -> Tensor:
        """Replace images of the batch of a step.

        Args:
            number: The number of the step, counted from 0.
            pixels: This process's share of the batch, uint8 ``[B, C, H, W]``, on the CPU.

        Returns:
            The batch, uint8 ``[B, C, H, W]``: a copy, or ``pixels`` itself where nothing is
            replaced.
        """
        whole = len(pixels) * self._share.of
        count = round(self._part * whole)
        if not count:
            return pixels
        generator = torch.Generator().manual_seed(derive_seed(self._seed, number))
        place = torch.full((whole,), -1)
        place[torch.randperm(whole, generator=generator)[:count]] = torch.arange(count)
        own = self._share.take(place)
        replaced = pixels.clone()
        replaced[own >= 0] = self._pictures(number, count, pixels)[own[own >= 0]]
        return replaced

    def close(self) -> None:
        """End the thread that draws ahead."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _pictures(self, number: int, count: int, like: Tensor) -> Tensor:
        """The ``count`` pictures of a step: a part of those of its block of steps."""
        size = count * math.prod(like.shape[1:])
        steps = max(1, min(MOST_STEPS, BLOCK_BYTES // size))
        block, place = divmod(number, steps)
        if self._block is None or self._block[0] != block:
            self._block = (block, self._drawn(block, steps * count, like))
        return self._block[1][place * count : (place + 1) * count]

    def _drawn(self, block: int, count: int, like: Tensor) -> Tensor:
        """The pictures of a block, perhaps drawn ahead; the next block is drawn meanwhile."""
        waiting, self._next = self._next, None
        ready = waiting is not None and waiting[0] == block
        pictures = waiting[1].result() if waiting and ready else self._draw(block, count, like)
        if self._thread is not None:
            self._next = (block + 1, self._thread.submit(self._draw, block + 1, count, like))
        return pictures

    def _draw(self, block: int, count: int, like: Tensor) -> Tensor:
        _, channels, height, width = like.shape
        generator = torch.Generator().manual_seed(derive_seed(self._seed, block, 0))
        return procedural_pixels(count, (channels, height, width), generator)
