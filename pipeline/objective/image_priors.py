"""The image priors R_TV and R_l2: natural images are smooth and their values are not extreme.

Both are the terms of ``R_prior = a_tv R_TV + a_l2 R_l2``, Eq. 3 of Yin et al. 2020, "Dreaming to
Distill".
"""

from __future__ import annotations

import torch
from torch import Tensor

# Keeps the gradient of a norm finite where an image is constant.
SQUARE_FLOOR = 1e-12


def total_variation(images: Tensor) -> Tensor:
    """The total variation of each image: ``R_TV(x) = sum_d ||x - shift_d(x)||_2``.

    ``d`` runs over four directions: right, down and both diagonals. ``shift_d`` moves the image by
    one pixel. Each norm is over the channels and pixels of one image. Eq. 3 of Yin et al. 2020
    names the term, and the paper's published code defines these directions.

    Args:
        images: Images in the units of the optimisation, ``[B, C, H, W]``.

    Returns:
        The total variation of each image, float32 ``[B]``, at least 0.

    Example:
        >>> image = torch.zeros(1, 1, 5, 5)
        >>> image[0, 0, 2, 2] = 3.0  # each direction has two differences of 3: 4 * sqrt(2 * 9)
        >>> total_variation(image)
        tensor([16.9706])
    """
    differences = (
        images[..., :, 1:] - images[..., :, :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
    return torch.stack([_norm(difference) for difference in differences]).sum(0)


def l2_norm(images: Tensor) -> Tensor:
    """The Euclidean norm of each image: ``R_l2(x) = ||x||_2``, of Eq. 3 of Yin et al. 2020.

    Args:
        images: Images in the units of the optimisation, ``[B, C, H, W]``.

    Returns:
        The norm of each image, float32 ``[B]``, at least 0.

    Example:
        >>> l2_norm(torch.ones(1, 1, 2, 2))
        tensor([2.])
    """
    return _norm(images)


def _norm(values: Tensor) -> Tensor:
    """The Euclidean norm over all dimensions but the first, ``[B, C, H, W] -> [B]``.

    The sum has two steps because torch.compile turns one sum over a whole image into a slow loop.
    """
    square = values.float().square().sum((1, 3)).sum(1)
    return square.clamp_min(SQUARE_FLOOR).sqrt()
