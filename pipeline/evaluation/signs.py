"""Signs of how useful a dataset is, which need no real image.

A teacher confirms almost every label of the dataset that was made from it, also where the images
are black or teach nothing. So each sign asks something else: how the pixels are spread, whether
the label survives small changes of the image, whether it survives small changes of the teacher, and
how far the statistics of the batch are from the teacher's running statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.inversion.views import crop, resize
from pipeline.objective.bn_statistics import FeatureStatistics
from pipeline.objective.feature import feature_loss
from pipeline.teachers.teacher import Teacher

BATCH = 256  # images of a forward pass, and of the batch whose statistics are compared, at most
MOST = 512  # images that are looked at, at most
_MOST_PIXELS, _BATCH_PIXELS = 2**22, 2**21  # fewer of large images: a minute, and little memory
ZOOM, NOISE, CONTRAST, SHIFT = 0.75, 0.2, 0.6, 0.125
WEIGHT_NOISE, PRUNED, BITS = 0.2, 0.3, 4
_Change = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class Signs:
    """The signs of one dataset. Every share is in [0, 1].

    Attributes:
        brightness: Mean of the pixels as a share of 255.
        contrast: Median over the images of the standard deviation of an image's pixels, as a share
            of 255. Natural images have about 0.2.
        saturated: Share of the pixels that are 0 or 255.
        confirmed: Share of the labels that the teacher confirms; None without labels.
        views: Share of the labels that it confirms after each change of the images; empty without
            labels.
        perturbed: Share of the labels that a changed teacher confirms, for each change; empty
            without labels.
        gap: R_feature, normalised, of the images; None without BatchNorm.
        taught: What a student learned from the images in a few steps, from
            :func:`pipeline.evaluation.trial_student.trial_agreement`; None where none was trained.
    """

    brightness: float
    contrast: float
    saturated: float
    confirmed: float | None
    views: dict[str, float]
    perturbed: dict[str, float]
    gap: float | None
    taught: float | None = None


def measure_signs(teacher: Teacher, pixels: Tensor, labels: Tensor) -> Signs:
    """Measure the signs of a dataset.

    Args:
        teacher: The teacher.
        pixels: uint8 ``[N, C, H, W]``. Of more than :func:`images_to_see`, random ones are used.
        labels: ``[N]``. They are not used for a teacher without labels.

    Example::

        measure_signs(teacher, torch.zeros(64, 3, 32, 32, dtype=torch.uint8), labels).contrast  # 0
    """
    rows = sample_rows(len(labels), images_to_see(teacher))
    pixels, labels = pixels[rows], labels[rows]
    shares = pixels.float() / 255
    confirmed, gap = _confirmed(teacher, teacher.network, pixels, labels)
    changes = VIEWS if teacher.labelled else {}
    networks = _perturbed(teacher.network) if teacher.labelled else ()
    return Signs(
        brightness=shares.mean().item(),
        contrast=shares.flatten(1).std(1).median().item(),
        saturated=((pixels == 0) | (pixels == 255)).float().mean().item(),
        confirmed=confirmed if teacher.labelled else None,
        views={
            name: _confirmed(teacher, teacher.network, pixels, labels, change)[0]
            for name, change in changes.items()
        },
        perturbed={
            name: _confirmed(teacher, network, pixels, labels)[0] for name, network in networks
        },
        gap=gap,
    )


def sample_rows(count: int, most: int) -> Tensor:
    """At most ``most`` of ``count`` rows, in order, int64. The same arguments give the same rows.

    Evenly spaced rows would not do: the labels of a dataset repeat one order of the classes, so all
    of these rows may have the same class.

    Example:
        >>> sample_rows(3, most=5)
        tensor([0, 1, 2])
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(count, generator=generator)[:most].sort().values


def images_to_see(teacher: Teacher) -> int:
    """How many images of a dataset are looked at: ``MOST``, or fewer of large images."""
    return _limited(MOST, _MOST_PIXELS, teacher)


def _limited(most: int, pixels: int, teacher: Teacher) -> int:
    _, height, width = teacher.shape
    return max(2, min(most, pixels // (height * width)))


def _confirmed(
    teacher: Teacher,
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    change: _Change | None = None,
) -> tuple[float, float | None]:
    """The share of confirmed labels, and the gap of the first batch."""
    space, device = teacher.space(), teacher.device
    generator = torch.Generator().manual_seed(0)
    right, gap = 0, None
    size = _limited(BATCH, _BATCH_PIXELS, teacher)
    with torch.no_grad(), FeatureStatistics(network) as statistics:
        for batch, expected in zip(pixels.split(size), labels.split(size), strict=True):
            images = space.pixels.normalise(batch.to(device))
            if change is not None:
                images = space.pixels.clamp(change(images, generator))
            logits = network(space.network_input(images))
            layers = statistics.collect()
            if gap is None and layers:
                gap = float(feature_loss(layers, "normalised"))
            right += int((logits.argmax(1).cpu() == expected).sum())
    return right / len(labels), gap


def _zoomed(images: Tensor, generator: torch.Generator) -> Tensor:
    top, left = torch.rand(2, generator=generator).tolist()
    return crop(images, 0.0, top, left, smallest=ZOOM)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    height, width = images.shape[2:]
    reach = max(1, round(SHIFT * min(height, width)))
    down, right = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    return padded[:, :, down : down + height, right : right + width]


def _blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    for _ in range(max(1, round(min(images.shape[2:]) / 32))):
        images = F.avg_pool2d(F.pad(images, (1,) * 4, mode="reflect"), 3, stride=1)
    return images


def _noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return images + NOISE * noise


def _paler(images: Tensor, generator: torch.Generator) -> Tensor:
    return CONTRAST * images


def _coarser(images: Tensor, generator: torch.Generator) -> Tensor:
    height, width = images.shape[2:]
    return resize(resize(images, (-(-height // 2), -(-width // 2))), (height, width))


VIEWS: dict[str, _Change] = {
    "crop": _zoomed,
    "shift": _shifted,
    "blur": _blurred,
    "noise": _noisy,
    "contrast": _paler,
    "half size": _coarser,
}
"""The changes of an image that should leave its class, by name."""


def _perturbed(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Copies of the teacher whose weights were changed a little, by the name of the change."""
    generator = torch.Generator().manual_seed(0)
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "noisy weights": lambda w: (
            w + WEIGHT_NOISE * w.std() * torch.randn(w.shape, generator=generator).to(w)
        ),
        "pruned weights": _prune,
        "rounded weights": _round,
    }
    for name, change in changes.items():
        changed = copy.deepcopy(network)
        with torch.no_grad():
            for weight in changed.parameters():
                if weight.ndim > 1 and weight.is_floating_point():
                    weight.copy_(change(weight))
        yield name, changed


def _prune(weight: Tensor) -> Tensor:
    """Set the smallest weights to 0, the share ``PRUNED`` of all."""
    smallest = max(1, round(PRUNED * weight.numel()))
    threshold = weight.abs().flatten().kthvalue(smallest).values
    return torch.where(weight.abs() <= threshold, 0.0, weight)


def _round(weight: Tensor) -> Tensor:
    """Round to ``BITS`` bits, with a scale for each output channel."""
    largest = weight.abs().flatten(1).amax(1).clamp_min(1e-12)
    scale = (largest / (2 ** (BITS - 1) - 1)).view(-1, *[1] * (weight.ndim - 1))
    rounded: Tensor = (weight / scale).round() * scale
    return rounded
