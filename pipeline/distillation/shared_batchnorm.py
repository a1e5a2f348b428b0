"""BatchNorm whose statistics cover a batch that several processes share."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.errors import UserError
from pipeline.execution.torchrun import own_share


class SharedBatchNorm(_BatchNorm):
    """BatchNorm whose training statistics are those of the whole batch, over all processes.

    ``torch.nn.SyncBatchNorm`` does the same on GPUs only; this class works on any device. With
    ``n`` processes of equal shares, whose means are ``m_i`` and variances ``v_i``, the batch has
    the mean ``m = mean(m_i)`` and the variance ``mean(v_i) + mean((m_i - m)^2)``. Statistics are
    computed in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            output: Tensor = super().forward(input)
            return output
        features = input.float()
        dims = [dim for dim in range(features.ndim) if dim != 1]
        variances, means = _from_all(torch.stack(torch.var_mean(features, dims, correction=0)))
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        if self.training and self.running_mean is not None:
            count = features.numel() // features.shape[1] * len(means)
            self._update_running(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        shape = [1, -1, *[1] * (features.ndim - 2)]
        result: Tensor = (features - mean.view(shape)) * scale.view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.type_as(input)

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def share_batchnorm(network: nn.Module) -> nn.Module:
    """Replace the BatchNorm layers of a network by :class:`SharedBatchNorm`.

    Args:
        network: The student. Its layers are replaced in place and keep their parameters and names.

    Returns:
        The network. Nothing is replaced where this process is the only one.

    Raises:
        UserError: The network has a kind of BatchNorm layer that cannot be replaced.

    Example::

        student = share_batchnorm(student)  # before the optimiser takes its parameters
    """
    if own_share().of == 1:
        return network
    if isinstance(network, SharedBatchNorm):  # The network has this layer under two names.
        return network
    if isinstance(network, _BatchNorm):
        return _shared(network)
    children = [(name, child) for name, child in network._modules.items() if child is not None]
    for name, child in children:
        setattr(network, name, share_batchnorm(child))
    return network


def _shared(layer: _BatchNorm) -> SharedBatchNorm:
    if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        raise UserError(
            f"the student has a {type(layer).__name__}, which several processes cannot share: "
            "use torch.nn.BatchNorm2d, or run one process"
        )
    shared = SharedBatchNorm(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )
    shared.weight, shared.bias = layer.weight, layer.bias
    shared.running_mean, shared.running_var = layer.running_mean, layer.running_var
    shared.num_batches_tracked = layer.num_batches_tracked
    return shared.train(layer.training)


@torch.library.custom_op("dreamshard::sum_over_processes", mutates_args=())
def _sum(values: Tensor) -> Tensor:
    """Sum ``values`` over the processes; the gradient is the sum of the processes' gradients.

    The sum is a custom operator, so that a compiled student stays one graph. Every process then
    sums in the same order.
    """
    total = values.clone()
    dist.all_reduce(total)
    return total


@_sum.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


_sum.register_autograd(lambda context, gradient: _sum(gradient))


def _from_all(values: Tensor) -> tuple[Tensor, ...]:
    """Gather ``[N, C]`` of each process into N tensors ``[processes, C]``, equal everywhere."""
    share = own_share()
    place = torch.zeros(share.of, 1, 1, device=values.device)
    place[share.index] = 1
    gathered: Tensor = _sum(place * values)
    return gathered.unbind(1)
