"""Images moved, in a step of distillation, to where a student differs more from its teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.execution.torchrun import WHOLE, Share

BLURS = 2  # so that shapes and shades change, not single pixels


def draw_distances(
    count: int, reach: float, generator: torch.Generator, share: Share = WHOLE
) -> Tensor:
    """How far each of ``count`` images, which are ``share`` of a batch, is to move: uniform in
    [0, ``reach``]. ``[count, 1, 1, 1]``; nothing is drawn for a reach of 0."""
    if not reach:
        return torch.zeros(count, 1, 1, 1)
    return reach * share.take(torch.rand(count * share.of, 1, 1, 1, generator=generator))


def moved(images: Tensor, gradient: Tensor, distances: Tensor) -> Tensor:
    """``x + e g / rms(g)``, ``g`` the blurred gradient of Eq. 1 to ``x``, ``e`` the distance: one
    step up the loss, where a round of Adaptive DeepInversion takes many.

    ``[B, C, H, W], [B, C, H, W], [B, 1, 1, 1] -> [B, C, H, W]``, all in the teacher's normalised
    space. The step against the student itself is that of virtual adversarial training (Miyato et
    al. 2018); here the teacher says what a moved image is.
    """
    way = gradient.float()
    for _ in range(BLURS):
        way = F.avg_pool2d(way, 3, stride=1, padding=1)
    size = way.square().mean((1, 2, 3), keepdim=True).sqrt()
    way = way / size.clamp_min(torch.finfo(size.dtype).tiny)
    return images + distances * way
