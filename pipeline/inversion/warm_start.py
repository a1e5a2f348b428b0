"""Warm starts: an adaptive round may start its images from earlier images of their class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.dataset.layout import Layout
from pipeline.dataset.stream import shard_batches
from pipeline.storage import Location
from pipeline.teachers.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class Pool:
    """Earlier images to start from.

    ``pixels`` are uint8 ``[N, C, H, W]``. ``labels`` are their classes, ``[N]``. ``share``, in
    (0, 1], is the weight of an earlier image in a start; the rest is noise.
    """

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
        """Mix noise with earlier images: ``(1 - share) noise + share earlier``.

        Args:
            noise: ``[B, C, H, W]`` in the units of the optimised images.
            labels: The class of each image, ``[B]``. A random image of that class is mixed in. A
                class without earlier images starts from noise alone.
            preprocessing: Converts pixels to these units, on the device of ``noise``.
            generator: The source of the random draws, on the CPU.

        Returns:
            The starting images, ``[B, C, H, W]``, on the device of ``noise``.
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
    """The images of one earlier shard, for shard ``number`` of an adaptive round.

    The shards of a round take turns over the ``before`` shards of earlier rounds.

    Args:
        root: The dataset's directory.
        number: The number of the shard to make.
        before: The number of shards in earlier rounds.
        share: The weight of an earlier image in a start, in (0, 1].
    """
    shard = Layout(root).tar(number % before)
    pixels, labels = zip(*shard_batches([shard], 1000), strict=True)
    return Pool(torch.cat(pixels), torch.cat(labels), share)
