"""Images as sums of layers of several sizes, so that large structures change as fast as details."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


class Scales:
    """A batch of images, ``x = z_0 + up(z_1 + up(z_2 + ...))``. Each layer is optimised.

    ``z_0`` has the size of the images, and each further layer half the size of the one before.
    ``up`` enlarges by linear interpolation. Adam moves each value of each layer by the same amount
    in a step. The gradient of a value of a small layer is that of a whole region, so brightness,
    colour and shapes form in few steps. With one layer the pixels themselves are optimised.

    Args:
        images: The images at the start, ``[B, C, H, W]``. They become ``z_0``; other layers are 0.
        count: The number of layers, at least 1. Layers of less than one pixel are left out.

    Attributes:
        layers: The tensors to optimise, from ``z_0`` on. They require gradients.
    """

    def __init__(self, images: Tensor, count: int) -> None:
        self.layers = [images.detach().clone().requires_grad_(True)]
        height, width = images.shape[2:]
        while len(self.layers) < count and max(height, width) > 1:
            height, width = -(-height // 2), -(-width // 2)
            layer = images.new_zeros(*images.shape[:2], height, width)
            self.layers.append(layer.requires_grad_(True))

    def images(self) -> Tensor:
        """The sum of the layers, ``[B, C, H, W]``. It is differentiable."""
        rest = self._smaller()
        return self.layers[0] if rest is None else self.layers[0] + rest

    def limited(self, limit: Callable[[Tensor], Tensor]) -> Tensor:
        """Change ``z_0`` so that the sum of the layers is within limits.

        Args:
            limit: Maps images to the nearest images within the limits.

        Returns:
            The sum of the layers, differentiable, as of :meth:`images`. It is computed only once.
        """
        images = self.images()
        if images is self.layers[0]:
            with torch.no_grad():
                images.copy_(limit(images))
            return images
        with torch.no_grad():
            excess = limit(images) - images
            self.layers[0] += excess
        return images + excess

    def _smaller(self) -> Tensor | None:
        """The enlarged sum of the layers after the first, or None if there is only one."""
        total = None
        for layer, larger in zip(self.layers[:0:-1], self.layers[-2::-1], strict=True):
            total = layer if total is None else layer + total
            total = F.interpolate(
                total, size=larger.shape[2:], mode="bilinear", align_corners=False
            )
        return total
