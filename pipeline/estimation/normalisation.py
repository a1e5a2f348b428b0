"""Compare the given normalisation with the common ones, by the first BatchNorm layer's statistics.

A wrong mean or standard deviation often costs half of the accuracy and raises no error. The running
statistics of the first BatchNorm layer remember which input the network was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.evaluation.inputs import real_batches
from pipeline.objective.bn_statistics import FeatureStatistics, LayerStatistics, untrained_layers
from pipeline.teachers.preprocessing import NATURAL_DEVIATION, NATURAL_MEAN, Preprocessing
from pipeline.teachers.teacher import Teacher

GIVEN = "the given values"
# Mean and standard deviation of pixel / 255, one value for all channels or one for each.
COMMON: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "no normalisation": ((0.0,), (1.0,)),
    "0.5 and 0.5": ((0.5,), (0.5,)),
    "0.5 and 1": ((0.5,), (1.0,)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "MNIST": ((0.1307,), (0.3081,)),
    "pixels of 0 to 255": ((0.0,), (1 / 255,)),
    "pixels of 0 to 255 minus ImageNet's mean": ((0.485, 0.456, 0.406), (1 / 255,) * 3),
}
# The given values are doubtful if their distance is larger than this, and this many times as large
# as the smallest. A distance of 0.5 is a variance 1.9 times too large.
DOUBTFUL, TIMES = 0.5, 3.0
_MOST_IMAGES, _MOST_PIXELS = 64, 2**20
_COLOUR = 0.3  # strength of the colours, relative to the brightness of natural images


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a normalisation is from the one that the first BatchNorm layer was trained with.

    ``value`` is the median over the channels of the symmetric Kullback-Leibler divergence of two
    normal distributions: of the layer's input for the images, and of its running statistics.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value: float


def normalisation_distances(teacher: Teacher, pixels: Tensor | None = None) -> list[Distance]:
    """Compare the given normalisation with the common ones.

    Args:
        teacher: The teacher.
        pixels: Real images, uint8 ``[N, C, H, W]``. None: procedural images whose spectrum, mean
            and contrast are those of natural photographs.

    Returns:
        The distances, the given normalisation first; nothing where the first BatchNorm layer is
        untrained or there is none.
    """
    if pixels is None:
        pixels = natural_images(teacher.shape)
    pixels, channels = pixels.to(teacher.device), teacher.shape[0]
    given = teacher.preprocessing
    rows = [(GIVEN, tuple(given.mean.flatten().tolist()), tuple(given.std.flatten().tolist()))]
    rows += [
        (name, mean * (channels // len(mean)), std * (channels // len(std)))
        for name, (mean, std) in COMMON.items()
        if len(mean) in (1, channels) and (name != "MNIST" or channels == 1)
    ]
    distances = []
    for name, mean, std in rows:
        tensors = (torch.tensor(values, device=teacher.device) for values in (mean, std))
        preprocessing = Preprocessing(*(tensor.view(1, -1, 1, 1) for tensor in tensors))
        with torch.no_grad(), FeatureStatistics(teacher.network) as statistics:
            teacher.network(preprocessing.normalise(pixels))
            seen = statistics.collect()
        if not seen or _is_untrained(teacher, seen[0]):
            return []
        distances.append(Distance(name, mean, std, _distance(seen[0])))
    return distances


def describe_distances(distances: list[Distance], kind: str) -> str:
    """Say in one sentence which normalisation fits best, if one clearly does.

    Args:
        distances: From :func:`normalisation_distances`.
        kind: The images that were used, such as "procedural".
    """
    if not distances:
        return "not compared: there is no trained BatchNorm layer"
    given, best = distances[0], min(distances, key=lambda distance: distance.value)
    if given.value < DOUBTFUL or given.value < TIMES * best.value:
        return (
            f"the given mean and std fit the first BatchNorm layer (distance {given.value:.2g} on "
            f"{kind} images)"
        )
    mean, std = (", ".join(f"{value:.4g}" for value in row) for row in (best.mean, best.std))
    return (
        f"the given mean and std are doubtful: on {kind} images the first BatchNorm layer fits "
        f"{best.name} better (mean [{mean}], std [{std}]: distance {best.value:.2g} instead of "
        f"{given.value:.2g}). Check teacher.input, with `evaluate` if you have labelled images"
    )


def read_images(teacher: Teacher, tar: Path) -> Tensor:
    """Read the first real images of a tar, for :func:`normalisation_distances`.

    Raises:
        UserError: The file is missing, or holds no images of the teacher's size.
    """
    pixels, _ = next(real_batches(tar, "--images", teacher.shape, _MOST_IMAGES))
    return pixels


def natural_images(shape: tuple[int, int, int]) -> Tensor:
    """Procedural images like photographs: amplitudes fall as 1 / frequency, colours are weak.

    Args:
        shape: Channels, height and width.

    Returns:
        uint8 ``[N, C, H, W]``, always the same.
    """
    channels, height, width = shape
    count = max(8, min(_MOST_IMAGES, _MOST_PIXELS // (height * width)))
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    frequency = (rows.square() + columns.square()).sqrt()
    frequency[0, 0] = 1 / max(height, width)

    def noise(planes: int) -> Tensor:
        white = torch.randn(count, planes, height, width, generator=generator)
        smooth: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(height, width))
        return smooth / smooth.std()

    images = noise(1) + (_COLOUR * noise(channels) if channels > 1 else 0)
    images = (images - images.mean()) / images.std()
    return (255 * (NATURAL_MEAN + NATURAL_DEVIATION * images)).round().clamp(0, 255).to(torch.uint8)


def _distance(layer: LayerStatistics) -> float:
    """The median over the channels; channels that the layer never sees change do not count."""
    floor = 1e-6 * layer.running_variance.max()
    alive = layer.running_variance > floor
    running, seen = layer.running_variance[alive], layer.variance[alive] + 1e-12
    shift = (layer.mean - layer.running_mean)[alive].square()
    divergence = (seen + shift) / running / 2 + (running + shift) / seen / 2 - 1
    return float(divergence.median())


def _is_untrained(teacher: Teacher, layer: LayerStatistics) -> bool:
    return bool(untrained_layers(teacher.network)) and not bool(layer.running_mean.any())
