"""The images that an inversion starts from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.procedural import procedural_pictures


def starting_images(
    count: int,
    shape: tuple[int, int, int],
    start: str,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw the random images that an inversion starts from.

    Args:
        count: The number of images, B.
        shape: Channels, height and width of an image.
        start: The kind of image. ``white`` is Gaussian noise of variance 1. ``low-frequency`` is
            coloured blobs: Gaussian noise on a grid of about one cell for five pixels, interpolated
            to full size, plus weak white noise. ``grey`` is a tenth of ``low-frequency``, so the
            gradient has little to undo. ``varied`` is :func:`varied_noise`, ``procedural`` is
            :func:`~pipeline.procedural.procedural_pictures`.
        generator: The source of the random draws, on the CPU.
        device: Where the images are computed. The draws are made on the CPU.

    Returns:
        Images, float32 ``[B, C, H, W]``, on ``device``, in the objective's ``units``.

    Example::

        starting_images(8, (3, 32, 32), "white", torch.Generator().manual_seed(0))
    """
    channels, height, width = shape
    if start == "varied":
        return varied_noise(count, shape, generator, device)
    if start == "procedural":
        return procedural_pictures(count, shape, generator, device)
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
    """Draw noise of another kind for each image: its coarseness, strength and colour are random.

    An image is ``a (u x + (1 - u) sqrt(C) mean_c x)`` with ``x = sum_k w_k z_k``. ``z_k`` is
    Gaussian noise of variance 1 on a grid of ``2^k`` cells a side, interpolated to full size: the
    first grid has one cell, the last has a cell for each pixel. The logarithms of the weights
    ``w_k`` are normal, and their squares sum to 1. ``u`` in [0, 1] sets how colourful the image is.
    ``a`` in about [0.5, 2] sets how strong it is.

    The arguments and the result are those of :func:`starting_images`.
    """
    channels, height, width = shape
    octaves = max(height, width).bit_length()
    weights = torch.randn(count, octaves, generator=generator).exp()
    weights[:, -1] *= 0.3  # the gradient soon removes noise of single pixels
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
