"""The images that an inversion starts from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def starting_images(
    count: int,
    shape: tuple[int, int, int],
    start: str,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random images in normalised space, ``[count, C, H, W]`` in float32, on ``device``; drawn on
    the CPU.

    ``white`` is unit Gaussian noise. ``low-frequency`` is coloured blobs: unit noise on a grid of
    about one cell to five pixels, drawn smoothly to full size, under weak white noise. ``grey`` is
    a tenth of that: little that the gradient has to undo. ``varied`` draws anew for each image how
    coarse, how strong and how colourful its noise is (:func:`varied_noise`).
    """
    channels, height, width = shape
    if start == "varied":
        return varied_noise(count, shape, generator, device)
    white = torch.randn(count, *shape, generator=generator).to(device)
    if start == "white":
        return white
    grid = (max(2, round(height / 5)), max(2, round(width / 5)))
    coarse = torch.randn(count, channels, *grid, generator=generator).to(device)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    blobs = smooth + 0.1 * white
    return 0.1 * blobs if start == "grey" else blobs


def varied_noise(
    count: int,
    shape: tuple[int, int, int],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Noise of as many kinds as there are images, ``[count, C, H, W]``.

    ``a (u x + (1 - u) sqrt(C) mean_c x)`` with ``x = sum_k w_k z_k``: ``z_k`` is unit noise on a
    grid of ``2^k`` cells a side, drawn smoothly to full size (one cell is a colour, the last has a
    cell a pixel); the weights' logarithms are normal and their squares sum to 1; ``u`` in [0, 1]
    is how colourful it is, ``a`` in about [0.5, 2] how strong.
    """
    channels, height, width = shape
    octaves = max(height, width).bit_length()
    weights = torch.randn(count, octaves, generator=generator).exp()
    weights[:, -1] *= 0.3  # pixel noise alone is soon undone
    weights = F.normalize(weights, dim=1).to(device)
    noise = torch.zeros(count, *shape, device=device)
    for octave, weight in enumerate(weights.unbind(1)):
        sides = [min(2**octave, height), min(2**octave, width)]
        grid = torch.randn(count, channels, *sides, generator=generator).to(device)
        smooth = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        noise += weight.view(-1, 1, 1, 1) * smooth
    colour, strength = torch.rand(2, count, 1, 1, 1, generator=generator).to(device)
    noise = colour * noise + (1 - colour) * channels**0.5 * noise.mean(1, keepdim=True)
    varied: Tensor = 1.2 * (1.4 * strength - 0.9).exp() * noise
    return varied
