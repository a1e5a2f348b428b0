"""The optimiser Muon, for the weights of a student's hidden layers.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.device.precision import has_bfloat16

RATE = 0.15  # Muon's learning rate, as a multiple of the rate of all other weights.
WEIGHT_DECAY = 0.01
# Five times x -> a x + b x^3 + c x^5 brings singular values in [0.003, 1] to about 0.7 to 1.2.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


def hidden_weights(network: nn.Module) -> list[nn.Parameter]:
    """Select the weights that Muon may update.

    Args:
        network: The student.

    Returns:
        Weights of convolutions and linear layers, each once. The last layer's weight is left out.
        So are the weights of depthwise and grouped convolutions, which are several matrices.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights = {
        id(layer.weight): layer.weight
        for layer in layers[:-1]
        if isinstance(layer.weight, nn.Parameter) and getattr(layer, "groups", 1) == 1
    }
    if layers:
        weights.pop(id(layers[-1].weight), None)  # An earlier layer may share the last one's.
    return [
        weight
        for weight in weights.values()
        if _matrix(weight, weight).data_ptr() == weight.data_ptr()
    ]


class Muon:
    """Updates weights ``[out, in, ...]`` as matrices ``[out, in * ...]``.

    With learning rate ``r``, momentum ``u`` and gradient ``G``::

        M <- u M + (1 - u) G
        W <- (1 - r d) W - r sqrt(max(1, rows / columns)) orthogonalise(u M + (1 - u) G)

    The update has singular values of about 1, so that the network learns rare directions as fast
    as common ones. ``r`` is ``RATE`` times the given rate and ``d`` is ``WEIGHT_DECAY``.
    ``torch.optim.Muon`` updates one matrix after the other, and a GPU then waits for the launch of
    each kernel. This class updates all matrices together.

    Args:
        weights: Weights to update, see :func:`hidden_weights`.
        momentum: ``u``, in [0, 1).

    Example::

        muon = Muon(hidden_weights(student), momentum=0.9)
        loss.backward()
        muon.step(learning_rate=0.2)
    """

    def __init__(self, weights: Sequence[nn.Parameter], momentum: float) -> None:
        self._weights, self._momentum = list(weights), momentum
        self._averages = [torch.zeros_like(_matrix(w.detach(), w)) for w in weights]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update each weight that has a gradient.

        Args:
            learning_rate: The rate of all other weights in this step.
        """
        parts = [
            (_matrix(weight, weight), _matrix(weight.grad, weight), average)
            for weight, average in zip(self._weights, self._averages, strict=True)
            if weight.grad is not None
        ]
        if not parts:
            return
        matrices, gradients, averages = (list(tensors) for tensors in zip(*parts, strict=True))
        rate = RATE * learning_rate
        torch._foreach_lerp_(averages, gradients, 1 - self._momentum)
        torch._foreach_mul_(matrices, 1 - rate * WEIGHT_DECAY)
        updates = orthogonalise(torch._foreach_lerp(gradients, averages, self._momentum))
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.sub_(update, alpha=rate * max(1.0, update.shape[0] / update.shape[1]) ** 0.5)

    def state_dict(self) -> dict[str, Any]:
        """Return the momentum of each weight."""
        return {"averages": self._averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that :meth:`state_dict` returned."""
        torch._foreach_copy_(self._averages, state["averages"])


def orthogonalise(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Set the singular values of each matrix to about 1: ``U S V^T`` becomes ``U V^T``.

    Newton and Schulz's iteration computes it, in bfloat16 where the device has that in hardware.
    Singular values below 0.3 % of the matrix's norm stay smaller than 1. Matrices whose shorter
    sides are equal are computed together; the narrower ones are padded with zeros, which the
    iteration keeps.

    Args:
        matrices: Matrices ``[m, n]`` of any sizes.

    Returns:
        One float32 matrix ``[m, n]`` for each, in the same order.

    Example::

        (update,) = orthogonalise([torch.randn(64, 576)])
        torch.linalg.svdvals(update)  # all between 0.7 and 1.2
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
            result = part[:, : wide[place].shape[1]]
            results[place] = result if wide[place] is matrices[place] else result.T
    return results


def _newton_schulz(stack: Tensor) -> Tensor:
    """Set the singular values of each matrix of ``[n, rows, columns]`` to about 1."""
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
    """Return ``values`` as a matrix whose columns are ordered as ``weight`` lies in memory.

    With this order the matrix of the weight itself is a view and not a copy.
    """
    if not weight.is_contiguous():  # The weight is in channels-last layout.
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(values), -1)
