"""Strided depthwise convolutions, computed in a way that has a fast gradient on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class UnitStride(TorchFunctionMode):
    """Computes strided depthwise convolutions with stride 1 and then takes every n-th pixel.

    The result is the same sum. In bfloat16 oneDNN (torch 2.14) has only a reference implementation
    of the gradient of a strided depthwise convolution, which takes many times as long.
    ``python -m benchmarks.engine.step`` measures both.

    Example::

        with UnitStride():
            loss = network(images).sum()
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.conv2d:
            return func(*args, **kwargs)
        return conv2d(*args, **kwargs)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Compute :func:`torch.nn.functional.conv2d`; arguments and result are the same."""
    down, right = (stride, stride) if isinstance(stride, int) else stride
    if weight.shape[1] > 1 or groups == 1 or max(down, right) == 1:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    dense = torch.conv2d(input, weight, bias, 1, padding, dilation, groups)
    return dense[:, :, ::down, ::right]
