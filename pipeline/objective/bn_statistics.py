"""Statistics of the inputs of a network's BatchNorm layers, for the term R_feature.

A BatchNorm layer is any module that holds a running mean and a running variance of its channels:
PyTorch's in 1, 2 and 3 dimensions, SyncBatchNorm, timm's BatchNormAct2d, the frozen layers of
torchvision and timm, and a user's own. InstanceNorm does not count: its running statistics describe
single images.
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
    """The statistics of one BatchNorm layer for one batch. Every tensor is float32 ``[channels]``.

    ``mean`` and ``variance`` are those of the layer's input over the batch and the pixels. The
    variance is the biased one. ``running_mean`` and ``running_variance`` are the layer's own.
    """

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
    """The BatchNorm layers whose running statistics are still the initial mean 0, variance 1."""
    return [layer for layer in batchnorm_layers(network) if _is_initial(*running(layer))]


def running(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The running mean and the running variance of a BatchNorm layer, each ``[channels]``."""
    mean, variance = (getattr(layer, name) for name in _RUNNING)
    return mean, variance


class FeatureStatistics:
    """Records :class:`LayerStatistics` of every BatchNorm layer during a forward pass.

    It is a context manager, because its hooks must not outlive their use.

    Args:
        network: The network to watch.
        expected: The mean and the variance that the network's input should have, each
            ``[channels]``. They are used only if the network has no BatchNorm layer: the input is
            then recorded, as if a BatchNorm layer with these running statistics came first.

    Example::

        with FeatureStatistics(network) as statistics:
            logits = network(images)
            layers = statistics.collect()
    """

    def __init__(self, network: nn.Module, expected: tuple[Tensor, Tensor] | None = None) -> None:
        self._layers = batchnorm_layers(network)
        self._expected = expected
        self._of_input = not self._layers and expected is not None
        if self._of_input:
            self._layers = [network]
        self._seen: list[LayerStatistics] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        # torch.compile recompiles when a hook is another object, so this one is kept.
        self._hook = self._record

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
        """Return the recorded statistics in the order in which the layers ran, and drop them.

        A layer that ran twice is there twice.
        """
        seen, self._seen = self._seen, []
        return seen

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0]
        expected = self._expected if self._of_input else running(layer)
        assert expected is not None
        running_mean, running_variance = (tensor.float() for tensor in expected)
        axis = 1 if features.shape[1] == len(running_mean) else features.ndim - 1
        self._seen.append(_measure(features, axis, running_mean, running_variance))


def _measure(
    features: Tensor, axis: int, running_mean: Tensor, running_variance: Tensor
) -> LayerStatistics:
    """Compute mean and variance in one pass over ``features``, whose channels are on ``axis``.

    With ``d = x - running_mean`` the variance is ``E[d^2] - E[d]^2``. The subtraction loses few
    digits because the running mean is close to the batch's mean.
    """
    dims = [dim for dim in range(features.ndim) if dim != axis]
    shape = [-1 if dim == axis else 1 for dim in range(features.ndim)]
    distance = features.float() - running_mean.view(shape)
    by_image = features.device.type == "cpu" and features.dtype == torch.float32
    shift = _mean(distance, dims, by_image)
    variance = (_mean(distance.square(), dims, by_image) - shift.square()).clamp_min(0.0)
    return LayerStatistics(running_mean + shift, variance, running_mean, running_variance)


def _mean(values: Tensor, dims: list[int], by_image: bool) -> Tensor:
    """Average over ``dims``: at once, or over each image first and then over the batch.

    A compiled kernel for a CPU sums the channels of one register over all ``dims``, then those of
    the next. The float32 values of a pixel fill several registers. The kernel would read a whole
    batch once for each of them, but it finds one image in the cache.
    """
    return values.mean(dims[1:]).mean(0) if by_image and len(dims) > 1 else values.mean(dims)


def _is_channels(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1


def _is_initial(mean: Tensor, variance: Tensor) -> bool:
    return not bool(mean.any()) and bool((variance == 1).all())
