"""Warm starts: images of adaptive rounds that begin as earlier images of their class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.dataset.layout import Layout
from pipeline.dataset.stream import shard_batches
from pipeline.storage import Location
from pipeline.teachers.teacher import Preprocessing


@dataclass(frozen=True, slots=True)
class Pool:
    """Earlier images, uint8 ``[N, C, H, W]``, their labels ``[N]``, and their ``share`` of a start,
    in (0, 1]."""

    pixels: Tensor
    labels: Tensor
    share: float

    def warmed(
        self,
        noise: Tensor,
        labels: Tensor,
        preprocessing: Preprocessing,
        generator: torch.Generator,
    ) -> Tensor:
        """``(1 - share) noise + share earlier``, with an image of each label at random.

        ``[B, C, H, W]`` in normalised space, on the device of ``noise`` and ``preprocessing``. A
        label that there is none of has noise.
        """
        draws = torch.rand(len(labels), generator=generator)
        starts = noise.clone()
        for index, (label, draw) in enumerate(zip(labels.tolist(), draws.tolist(), strict=True)):
            rows = (self.labels == label).nonzero()[:, 0]
            if len(rows):
                row = int(rows[int(draw * len(rows))])
                earlier = preprocessing.normalise(self.pixels[row : row + 1].to(noise.device))[0]
                starts[index] = (1 - self.share) * starts[index] + self.share * earlier
        return starts


def earlier_pool(root: Location, number: int, before: int, share: float) -> Pool:
    """The images of one of the ``before`` shards that were made before the round of shard
    ``number``: each has its turn."""
    shard = Layout(root).tar(number % before)
    pixels, labels = zip(*shard_batches([shard], 1000), strict=True)
    return Pool(torch.cat(pixels), torch.cat(labels), share)
