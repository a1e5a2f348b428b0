"""Random views of a batch: the networks see the images shifted, flipped, cropped and recoloured.

A shift, flip or crop is the same for the whole batch. Each image and channel has its own change of
colour.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.objective.presets import Objective


class Views:
    """The views of one inversion, one for each iteration.

    Args:
        objective: Holds ``jitter``, ``flip``, ``zoom``, ``zoom_schedule`` and ``colour``.
        iterations: The number of iterations.
        generator: The source of the random draws, on the CPU. Each call of :meth:`show` uses it.
    """

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
        """Return the view of ``images``, ``[B, C, H, W]``, at ``iteration``.

        Call it once for each iteration, in order. The view is differentiable.
        """
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
        """The smallest side of a crop at ``iteration``, as a share of the image's side."""
        if self._objective.zoom_schedule == "constant":
            return self._objective.zoom
        done = iteration / max(1, self._iterations - 1)
        return 1 - (1 - self._objective.zoom) * (1 - math.cos(math.pi * done)) / 2

    def _draw(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator)


def crop(images: Tensor, share: float, top: float, left: float, *, smallest: float) -> Tensor:
    """Cut a part out of the images and enlarge it to their full size.

    Args:
        images: ``[B, C, H, W]``.
        share: Chooses the side of the part: 0 gives ``smallest``, 1 gives the whole image.
        top: Chooses the vertical place of the part, in [0, 1].
        left: Chooses the horizontal place of the part, in [0, 1].
        smallest: The smallest side of the part, as a share of the image's side, in (0, 1].

    Returns:
        The enlarged parts, ``[B, C, H, W]``.
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
    """Change contrast and brightness: ``image * exp(a) + b`` with ``a``, ``b`` in +-``strength``.

    Args:
        images: ``[B, C, H, W]``.
        draws: Uniform draws in [0, 1], ``[2, B, C]``: one for ``a`` and one for ``b`` of each image
            and channel.
        strength: The largest absolute value of ``a`` and ``b``, at least 0.
    """
    scale, offset = (strength * (2 * draws - 1))[..., None, None].to(
        images.device, non_blocking=True
    )
    changed: Tensor = images * scale.exp() + offset
    return changed


def resize(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """Resize ``[B, C, H, W]`` to ``sides``: average to shrink, interpolate to enlarge."""
    smaller = sides[0] < images.shape[2] or sides[1] < images.shape[3]
    resized: Tensor = F.interpolate(
        images,
        size=sides,
        mode="area" if smaller else "bilinear",
        align_corners=None if smaller else False,
    )
    return resized
