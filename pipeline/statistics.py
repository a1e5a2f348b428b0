"""What a batch does to a network's BatchNorm layers: mean and variance of each one's input."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """One BatchNorm layer's view of a batch, every tensor ``[channels]`` in float32."""

    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor


def batchnorm_layers(network: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of ``network`` that hold running statistics, in definition order."""
    return [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


class FeatureStatistics:
    """Record :class:`LayerStatistics` of every BatchNorm layer during a forward pass.

    A context manager, so that the hooks cannot outlive their use::

        with FeatureStatistics(network) as statistics:
            logits = network(images)
            layers = statistics.collect()

    ``collect`` returns the layers in the order they ran and forgets them.
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = batchnorm_layers(network)
        self._seen: list[LayerStatistics] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._hook = self._record  # one object: a compiled function stays valid for it

    def __enter__(self) -> FeatureStatistics:
        self._handles = [layer.register_forward_pre_hook(self._hook) for layer in self._layers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def collect(self) -> list[LayerStatistics]:
        seen, self._seen = self._seen, []
        return seen

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        assert layer.running_mean is not None and layer.running_var is not None
        features = inputs[0].float()
        dims = [dim for dim in range(features.ndim) if dim != 1]
        variance, mean = torch.var_mean(features, dim=dims, correction=0)
        self._seen.append(
            LayerStatistics(mean, variance, layer.running_mean.float(), layer.running_var.float())
        )
