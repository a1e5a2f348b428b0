"""A plain fake quantiser: rounded values with a learned step, computed in float32."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

_CANDIDATES = torch.linspace(0.05, 1.0, 96)  # steps that are tried, as parts of the largest one
_MOST = 200_000  # values of an activation that choose its first step


class FakeQuantiser(nn.Module):
    """Rounds values to ``2^bits`` levels.

    The gradient passes the rounding as if it were not there (straight-through estimator), and the
    step is learned (Esser et al., "Learned Step Size Quantization", ICLR 2020).

    Args:
        bits: number of bits.
        signed: levels from ``-2^(bits - 1)`` on, or from 0 on.
        step: first distance of two levels, above 0; of a shape that broadcasts to the values.
    """

    def __init__(self, bits: int, signed: bool, step: Tensor) -> None:
        super().__init__()
        self.low, self.high = levels(bits, signed)
        # The logarithm keeps a step above 0, and its updates in proportion to its size.
        self.log_step = nn.Parameter(step.log())

    def forward(self, values: Tensor) -> Tensor:
        step = self.log_step.exp()
        places = (values / step).clamp(self.low, self.high)
        rounded = places + (places.round() - places).detach()
        return rounded * step


def levels(bits: int, signed: bool) -> tuple[int, int]:
    """The lowest and the highest level."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def best_step(values: Tensor, bits: int, signed: bool) -> Tensor:
    """The step with the least mean squared error, for each row of ``[C, N]``: ``[C]``."""
    low, high = levels(bits, signed)
    largest = values.abs().amax(1).clamp_min(1e-8) / high
    best, least = largest, torch.full_like(largest, float("inf"))
    for part in _CANDIDATES.tolist():
        step = (largest * part)[:, None]
        error = ((values / step).round().clamp(low, high) * step - values).square().mean(1)
        best = torch.where(error < least, step[:, 0], best)
        least = torch.minimum(error, least)
    return best


def quantise(network: nn.Module, bits: tuple[int, int], images: Tensor) -> nn.Module:
    """A copy of a network with fake quantisers.

    All convolutions and linear layers get quantised weights, the first and the last too, with a
    step for each output channel. The output of each ReLU is quantised with one step. The image and
    the logits are not quantised.

    Args:
        network: in eval mode. torch.fx must be able to trace it.
        bits: of a weight, and of an activation.
        images: normalised images, from which the first steps of the activations follow.
    """
    traced = fx.symbolic_trace(copy.deepcopy(network).requires_grad_(True))
    names = _mark_activations(traced)
    found = _activations(traced, names, images)
    for layer in list(traced.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.detach()
            step = best_step(weight.flatten(1), bits[0], signed=True)
            quantiser = FakeQuantiser(bits[0], True, step.view(-1, *[1] * (weight.ndim - 1)))
            parametrize.register_parametrization(layer, "weight", quantiser)
    for name in names:
        step = best_step(found[name][None], bits[1], signed=False)
        setattr(traced, name, FakeQuantiser(bits[1], False, step.view(())))
    return traced


def _mark_activations(traced: fx.GraphModule) -> list[str]:
    """Insert an identity after each ReLU; returns their names."""
    modules = dict(traced.named_modules())
    names: list[str] = []
    for node in list(traced.graph.nodes):
        is_layer = node.op == "call_module" and isinstance(modules[node.target], nn.ReLU)
        if not is_layer and node.target not in (F.relu, torch.relu, "relu", "relu_"):
            continue
        name = f"activation_{len(names)}"
        traced.add_submodule(name, nn.Identity())
        with traced.graph.inserting_after(node):
            mark = traced.graph.call_module(name, (node,))
        node.replace_all_uses_with(mark)
        mark.args = (node,)
        names.append(name)
    traced.recompile()
    return names


def _activations(traced: fx.GraphModule, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """Some values of each marked activation, one row each."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            values = output.flatten()
            found[name] = values[:: max(1, len(values) // _MOST)]

        return hook

    hooks = [traced.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        traced(images)
    for hook in hooks:
        hook.remove()
    return found
