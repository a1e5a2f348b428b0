"""Muon for a student's hidden layers: their weights move as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

RATE = 0.15  # times the learning rate of everything else
WEIGHT_DECAY = 0.01


def hidden_weights(network: nn.Module) -> list[nn.Parameter]:
    """The weights of convolutions and linear layers, each once, but for the last layer's and those
    of depthwise and grouped convolutions, which are no single matrices."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights = {
        id(layer.weight): layer.weight
        for layer in layers[:-1]
        if isinstance(layer.weight, nn.Parameter) and getattr(layer, "groups", 1) == 1
    }
    if layers:
        weights.pop(id(layers[-1].weight), None)  # where the last one shares it
    return [
        weight
        for weight in weights.values()
        if _matrix(weight, weight).data_ptr() == weight.data_ptr()
    ]


class Matrices:
    """Weights ``[out, in, ...]`` as matrices ``[out, all the rest]``, moved by Muon.

    Its update is the momentum with all its singular values made 1 (Jordan et al. 2024, "Muon: An
    optimizer for hidden layers in neural networks"), so that rare directions are learnt as fast as
    common ones.
    """

    def __init__(self, weights: Sequence[nn.Parameter], momentum: float) -> None:
        self._weights = list(weights)
        self._matrices = [nn.Parameter(_matrix(w.detach(), w)) for w in weights]
        # The rate comes with each step.
        self._optimizer = torch.optim.Muon(
            self._matrices, weight_decay=WEIGHT_DECAY, momentum=momentum
        )

    def step(self, learning_rate: float) -> None:
        """A step along the weights' gradients; ``learning_rate`` is that of everything else."""
        for matrix, weight in zip(self._matrices, self._weights, strict=True):
            matrix.grad = None if weight.grad is None else _matrix(weight.grad, weight)
        for group in self._optimizer.param_groups:
            group["lr"] = RATE * learning_rate
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)


def _matrix(values: Tensor, weight: Tensor) -> Tensor:
    """``values`` as a matrix whose columns are ordered as ``weight`` lies in memory: that of the
    weight itself is no copy."""
    if not weight.is_contiguous():  # channels last
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(values), -1)
