"""Between pixels, the units in which images are optimised, and the input of a network.

Teachers expect inputs of many ranges: 0 to 1, -1 to 1, 0 to 255, or standardised. A learning rate
or a weight that fits one range does not fit another. So images have fixed units
(:class:`ImageSpace`), and an affine map in front of the network turns them into its input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.teacher import InputConfig
from pipeline.objective.presets import Units

# Mean and standard deviation of the pixels of natural images, as shares of 255.
NATURAL_MEAN, NATURAL_DEVIATION = 0.45, 0.25
_MEASURED = (0.1, 0.4)  # range of the standard deviations of real data, as shares of 255


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Converts uint8 pixels to the teacher's space, ``(pixel / 255 - mean) / std``, and back.

    Attributes:
        mean: float32 ``[1, C, 1, 1]``.
        std: float32 ``[1, C, 1, 1]``.
    """

    mean: Tensor
    std: Tensor

    @staticmethod
    def of(config: InputConfig) -> Preprocessing:
        """The preprocessing of the configured input, on the CPU."""
        mean, std = (torch.tensor(v, dtype=torch.float32) for v in (config.mean, config.std))
        return Preprocessing(mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Convert uint8 pixels ``[B, C, H, W]`` to float32 in the teacher's space."""
        return (pixels.to(torch.float32) / 255 - self.mean) / self.std

    def quantise(self, images: Tensor) -> Tensor:
        """Convert images in the teacher's space to the nearest uint8 pixels."""
        return ((images * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def clamp(self, images: Tensor) -> Tensor:
        """Limit images in the teacher's space to values that pixels of 0 to 255 can have."""
        return torch.minimum(torch.maximum(images, -self.mean / self.std), self.highest)

    def measured(self) -> Tensor:
        """Whether ``std`` seems measured on data, bool ``[C]``.

        Data in [0, 1] has a standard deviation of about 0.1 to 0.4. Any other ``std`` only changes
        the range, such as 1/255 for pixels of 0 to 255.
        """
        std = self.std.flatten()
        return (std >= _MEASURED[0]) & (std <= _MEASURED[1])

    def expected(self) -> tuple[Tensor, Tensor]:
        """Guess the mean and variance of real images in the teacher's space, each ``[C]``.

        Where ``std`` was measured on data, they are 0 and 1. Elsewhere the mean and standard
        deviation of natural images are assumed.
        """
        std, measured = self.std.flatten(), self.measured()
        mean = torch.where(measured, 0.0, (NATURAL_MEAN - self.mean.flatten()) / std)
        deviation = torch.where(measured, 1.0, NATURAL_DEVIATION / std)
        return mean, deviation.square()

    @property
    def highest(self) -> Tensor:
        """The value of the pixel 255 in the teacher's space, ``[1, C, 1, 1]``."""
        return (1 - self.mean) / self.std

    def to(self, device: torch.device) -> Preprocessing:
        """The same preprocessing on another device."""
        return Preprocessing(self.mean.to(device), self.std.to(device))


@dataclass(frozen=True, slots=True)
class ImageSpace:
    """The units of images, and the map from them to the input of a network.

    Attributes:
        pixels: Converts between uint8 pixels and images in these units.
        scale: float32 ``[1, C, 1, 1]``, or None where images already are the network's input.
        offset: As ``scale``.

    Example::

        space = image_space(teacher.preprocessing)
        images = space.pixels.normalise(pixels)
        logits = teacher.network(space.network_input(images))
    """

    pixels: Preprocessing
    scale: Tensor | None = None
    offset: Tensor | None = None

    def network_input(self, images: Tensor) -> Tensor:
        """Convert images ``[B, C, H, W]`` to the input of the network. It is differentiable."""
        if self.scale is None or self.offset is None:
            return images
        return images * self.scale + self.offset


def image_space(preprocessing: Preprocessing, units: Units = "image") -> ImageSpace:
    """The space of the images of a network.

    In the units ``image``, an image is ``x = (pixel / 255 - 0.45) / 0.25``, for all channels and
    all networks. The network's input is ``(pixel / 255 - mean) / std``, which is ``a x + b`` with
    ``a = 0.25 / std`` and ``b = (0.45 - mean) / std``.

    Args:
        preprocessing: The normalisation of the network's input.
        units: ``image``, or ``teacher``: images are then the network's input itself.
    """
    if units == "teacher":
        return ImageSpace(preprocessing)
    mean, std = preprocessing.mean, preprocessing.std
    pixels = Preprocessing(
        torch.full_like(mean, NATURAL_MEAN), torch.full_like(std, NATURAL_DEVIATION)
    )
    return ImageSpace(pixels, NATURAL_DEVIATION / std, (NATURAL_MEAN - mean) / std)
