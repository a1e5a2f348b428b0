"""The images of a calibration: a balanced subset, drawn with a seed and normalised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.dataset.dataset import Dataset, whole_number
from pipeline.dataset.tar import Pixels
from pipeline.exporting.source import Source, open_source
from pipeline.teachers.preprocessing import Preprocessing

Batch = NDArray[np.float32]
"""Images ``[B, C, H, W]``, normalised by the mean and std of the teacher's input."""


@dataclass(frozen=True, slots=True)
class CalibrationImages:
    """Images in memory. Each iteration yields all of them once, in the same order.

    Attributes:
        pixels: uint8 ``[N, C, H, W]``.
        preprocessing: turns pixels into the input of the teacher.
        batch: images in a batch, at least 1. The last batch may be smaller.

    Example:
        >>> images = calibration_images(Dataset("data/synthetic"), 256, batch=32)
        >>> len(images)  # batches
        8
        >>> next(iter(images)).dtype
        dtype('float32')
    """

    pixels: Pixels
    preprocessing: Preprocessing
    batch: int = 1

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self.pixels) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.pixels), self.batch):
            pixels = torch.from_numpy(self.pixels[first : first + self.batch])
            yield self.preprocessing.normalise(pixels).numpy()


def calibration_images(
    dataset: Dataset, images: int = 256, *, seed: int = 0, batch: int = 1
) -> CalibrationImages:
    """Read a balanced subset of a finished dataset.

    Each class has the same number of images, or one more. Before a shard is used, it is compared
    with its digest in the provenance.

    Args:
        dataset: the dataset.
        images: how many images, from 1 to all images of the dataset.
        seed: draws the images of each class, at least 0. The same seed draws the same images.
        batch: images in a batch, at least 1. Leave it at 1 if the network takes only batches of 1.

    Returns:
        The images. Each iteration yields float32 arrays ``[B, C, H, W]``.

    Raises:
        UserError: a value is wrong, the dataset has too few images, or a shard was changed.

    Example:
        >>> for images in calibration_images(Dataset("data/synthetic"), 256, batch=32):
        ...     network(torch.from_numpy(images))
    """
    whole_number("seed", seed)
    whole_number("batch", batch, least=1)
    source = open_source(dataset, whole_number("images", images, least=1), seed)
    return CalibrationImages(read_pixels(source), Preprocessing.of(source.input), batch)


def read_pixels(source: Source) -> Pixels:
    """The pixels of all chosen images, uint8 ``[N, C, H, W]``."""
    pixels = np.empty((len(source), *source.shape), np.uint8)
    for place, sample in zip(pixels, source.samples("calibration images"), strict=True):
        place[:] = sample.pixels()
    return pixels
