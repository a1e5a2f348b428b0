"""What a batch does to a network's BatchNorm layers: mean and variance of each one's input.

A BatchNorm layer is any module that holds a running mean and variance of its channels: PyTorch's
in 1, 2 and 3 dimensions, SyncBatchNorm, timm's BatchNormAct2d, the frozen ones of torchvision and
timm, and the users' own. InstanceNorm keeps statistics of another kind and does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

_RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """One BatchNorm layer's view of a batch, every tensor ``[channels]`` in float32."""

    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor


def batchnorm_layers(network: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers of ``network`` that hold running statistics, in definition order."""
    return [
        module
        for module in network.modules()
        if not isinstance(module, _InstanceNorm)
        and all(_is_channels(getattr(module, name, None)) for name in _RUNNING)
    ]


def untrained_layers(network: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers whose statistics are still the initial mean 0 and variance 1."""
    return [layer for layer in batchnorm_layers(network) if _is_initial(*running(layer))]


def running(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A BatchNorm layer's running mean and variance, ``[channels]``."""
    mean, variance = (getattr(layer, name) for name in _RUNNING)
    return mean, variance


class FeatureStatistics:
    """Record :class:`LayerStatistics` of every BatchNorm layer during a forward pass.

    A context manager, so that the hooks cannot outlive their use::

        with FeatureStatistics(network) as statistics:
            logits = network(images)
            layers = statistics.collect()

    ``collect`` returns the layers in the order they ran and forgets them.

    Of a network without BatchNorm it records its input, as if a BatchNorm layer with the running
    statistics ``expected`` (mean and variance, each ``[channels]``) stood before it.
    """

    def __init__(self, network: nn.Module, expected: tuple[Tensor, Tensor] | None = None) -> None:
        self._layers = batchnorm_layers(network)
        self._expected = expected
        self._of_input = not self._layers and expected is not None
        if self._of_input:
            self._layers = [network]
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
        features = inputs[0].float()
        expected = self._expected if self._of_input else running(layer)
        assert expected is not None
        running_mean, running_variance = (tensor.float() for tensor in expected)
        axis = 1 if features.shape[1] == len(running_mean) else features.ndim - 1
        self._seen.append(_measure(features, axis, running_mean, running_variance))


def _measure(
    features: Tensor, axis: int, running_mean: Tensor, running_variance: Tensor
) -> LayerStatistics:
    """Mean and variance in one pass: with ``d = x - running_mean``, ``E[d^2] - E[d]^2``.

    The running mean is near enough to the batch's for the difference to keep its digits.
    """
    dims = [dim for dim in range(features.ndim) if dim != axis]
    shape = [-1 if dim == axis else 1 for dim in range(features.ndim)]
    distance = features - running_mean.view(shape)
    shift = distance.mean(dims)
    variance = (distance.square().mean(dims) - shift.square()).clamp_min(0.0)
    return LayerStatistics(running_mean + shift, variance, running_mean, running_variance)


def _is_channels(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1


def _is_initial(mean: Tensor, variance: Tensor) -> bool:
    return not bool(mean.any()) and bool((variance == 1).all())
