"""Muon for a student's hidden layers: their weights move as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.device.precision import has_bfloat16

RATE = 0.15  # times the learning rate of everything else
WEIGHT_DECAY = 0.01
# x -> a x + b x^3 + c x^5, five times, brings what lies in [0.003, 1] to 0.7 to 1.2.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


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

    Its update is the momentum (Nesterov's) with all its singular values made 1, times
    ``sqrt(max(1, out / rest))`` (Jordan et al. 2024, "Muon: An optimizer for hidden layers in
    neural networks"), so that rare directions are learnt as fast as common ones. All matrices move
    together: one by one, as ``torch.optim.Muon`` does it, a GPU waits for the launch of each
    kernel.
    """

    def __init__(self, weights: Sequence[nn.Parameter], momentum: float) -> None:
        self._weights, self._momentum = list(weights), momentum
        self._averages = [torch.zeros_like(_matrix(w.detach(), w)) for w in weights]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """A step along the weights' gradients; ``learning_rate`` is that of everything else."""
        moving = [
            (_matrix(weight, weight), _matrix(weight.grad, weight), average)
            for weight, average in zip(self._weights, self._averages, strict=True)
            if weight.grad is not None
        ]
        if not moving:
            return
        matrices, gradients, averages = (list(tensors) for tensors in zip(*moving, strict=True))
        rate = RATE * learning_rate
        torch._foreach_lerp_(averages, gradients, 1 - self._momentum)
        torch._foreach_mul_(matrices, 1 - rate * WEIGHT_DECAY)
        ways = orthogonal(torch._foreach_lerp(gradients, averages, self._momentum))
        for matrix, way in zip(matrices, ways, strict=True):
            matrix.sub_(way, alpha=rate * max(1.0, way.shape[0] / way.shape[1]) ** 0.5)

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self._averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self._averages, state["averages"])


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix ``[m, n]`` with its singular values made 1, nearly: ``U V^T`` of ``U S V^T``, by
    Newton and Schulz's iteration, in bfloat16 where the device has that. Singular values below
    0.3 % of the matrix's norm stay smaller.

    Matrices of equal shorter sides are computed at once, with zeros, which stay, beside the narrow.
    """
    wide = [matrix if len(matrix) <= matrix.shape[1] else matrix.T for matrix in matrices]
    results = list(matrices)
    for rows in dict.fromkeys(len(matrix) for matrix in wide):
        places = [place for place, matrix in enumerate(wide) if len(matrix) == rows]
        columns = max(wide[place].shape[1] for place in places)
        stack = matrices[0].new_zeros(len(places), rows, columns)
        for part, place in zip(stack, places, strict=True):
            part[:, : wide[place].shape[1]] = wide[place]
        for part, place in zip(_newton_schulz(stack), places, strict=True):
            made = part[:, : wide[place].shape[1]]
            results[place] = made if wide[place] is matrices[place] else made.T
    return results


def _newton_schulz(stack: Tensor) -> Tensor:
    """``[n, rows, columns]`` to the same, the singular values of each made 1."""
    a, b, c = COEFFICIENTS
    size = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True).clamp_min(1e-7)
    stack = stack / size
    if has_bfloat16(stack.device):
        stack = stack.bfloat16()
    for _ in range(ITERATIONS):
        gram = stack @ stack.mT
        stack = torch.baddbmm(
            stack, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), stack, beta=a
        )
    return stack.float()


def _matrix(values: Tensor, weight: Tensor) -> Tensor:
    """``values`` as a matrix whose columns are ordered as ``weight`` lies in memory: that of the
    weight itself is no copy."""
    if not weight.is_contiguous():  # channels last
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(values), -1)
