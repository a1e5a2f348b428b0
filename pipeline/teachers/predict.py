"""Compute the logits of a network for stored images, a chunk at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.teachers.preprocessing import Preprocessing


def predict(network: nn.Module, preprocessing: Preprocessing, pixels: Tensor, chunk: int) -> Tensor:
    """The logits of a network, without gradients.

    Args:
        network: in eval mode, on the device of ``preprocessing``.
        preprocessing: turns pixels into the input of the network.
        pixels: uint8 ``[N, C, H, W]``, on any device.
        chunk: the most images in one forward pass.

    Returns:
        float32 ``[N, K]``, on the CPU.
    """
    device = preprocessing.mean.device
    with torch.no_grad():
        logits = [
            network(preprocessing.normalise(part.to(device))).float().cpu()
            for part in pixels.split(chunk)
        ]
    return torch.cat(logits)
