"""A network's BatchNorm statistics, taken anew from given images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def restate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Take every BatchNorm layer's running statistics anew: the mean over ``batches``."""
    network.eval()
    modules = (layer for layer in network.modules() if isinstance(layer, _BatchNorm))
    layers = [layer for layer in modules if layer.running_mean is not None]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's way to say: the plain mean of all that come
        layer.train()
    for images in batches:
        network(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
