"""What the networks are shown of a batch at each step: the images moved, cropped and recoloured.

A shift, flip or crop is the same for the whole batch; colours change for each image and channel.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.objective.presets import Objective


class Views:
    """The views of one inversion, drawn from ``generator`` (on the CPU) step after step."""

    def __init__(self, objective: Objective, iterations: int, generator: torch.Generator) -> None:
        reach = objective.jitter
        self._objective = objective
        self._generator = generator
        self._iterations = iterations
        self._shifts = torch.randint(
            -reach, reach + 1, (iterations, 2), generator=generator
        ).tolist()
        self._flips = torch.randint(0, 2, (iterations,), generator=generator).tolist()

    def show(self, images: Tensor, iteration: int) -> Tensor:
        """The view of ``[B, C, H, W]`` at an iteration; call it for each in turn."""
        objective = self._objective
        shown = torch.roll(images, tuple(self._shifts[iteration]), (2, 3))
        if objective.flip and self._flips[iteration]:
            shown = shown.flip(3)
        if objective.zoom < 1:
            shown = crop(shown, *self._draw(3).tolist(), smallest=self.smallest(iteration))
        if objective.colour > 0:
            shown = recolour(shown, self._draw(2, *images.shape[:2]), objective.colour)
        return shown

    def smallest(self, iteration: int) -> float:
        """The smallest side of a crop at an iteration, a share of the image's."""
        if self._objective.zoom_schedule == "constant":
            return self._objective.zoom
        done = iteration / max(1, self._iterations - 1)
        return 1 - (1 - self._objective.zoom) * (1 - math.cos(math.pi * done)) / 2

    def _draw(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator)


def crop(images: Tensor, share: float, top: float, left: float, *, smallest: float) -> Tensor:
    """A crop of a side between ``smallest`` and 1 of the image's, enlarged to the full size.

    ``share``, ``top`` and ``left`` in [0, 1] choose its side and its place.
    """
    height, width = images.shape[2:]
    side = smallest + (1 - smallest) * share
    rows, columns = (max(1, round(side * full)) for full in (height, width))
    if (rows, columns) == (height, width):
        return images
    first, start = round(top * (height - rows)), round(left * (width - columns))
    part = images[:, :, first : first + rows, start : start + columns]
    return resize(part, (height, width))


def recolour(images: Tensor, draws: Tensor, strength: float) -> Tensor:
    """``image * exp(a) + b`` with ``a`` and ``b`` within ``strength`` of 0.

    ``draws`` in [0, 1] are ``[2, B, C]``, for ``a`` and ``b`` of each image and channel.
    """
    scale, offset = (strength * (2 * draws - 1))[..., None, None].to(
        images.device, non_blocking=True
    )
    changed: Tensor = images * scale.exp() + offset
    return changed


def resize(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """``[B, C, H, W]`` at other ``sides``: averaged where that is smaller, else interpolated."""
    smaller = sides[0] < images.shape[2] or sides[1] < images.shape[3]
    resized: Tensor = F.interpolate(
        images,
        size=sides,
        mode="area" if smaller else "bilinear",
        align_corners=None if smaller else False,
    )
    return resized
