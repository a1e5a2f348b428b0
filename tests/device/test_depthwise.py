"""Strided depthwise convolutions at stride 1: the same numbers, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.device import depthwise
from pipeline.device.depthwise import UnitStride
from pipeline.inversion.engine import Engine
from pipeline.objective.presets import Objective
from tests.conftest import Params, load


def both_ways(layer: nn.Module, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradient of the input, without and within the block."""
    results = []
    for ours in (False, True):
        leaf = images.clone().requires_grad_(True)
        if ours:
            with UnitStride():
                out = layer(leaf)
        else:
            out = layer(leaf)
        out.square().sum().backward()
        assert leaf.grad is not None
        results.append([out.detach(), leaf.grad])
    return results[0], results[1]


@pytest.mark.parametrize("stride", [1, 2, (1, 2), (3, 2)])
@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(3, 1, 1), (5, 0, 1), (3, 2, 2)])
def test_depthwise_is_the_same_sum(
    stride: int | tuple[int, int], kernel: int, padding: int, dilation: int
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups=4).double()
    images = torch.randn(2, 4, 13, 12, dtype=torch.float64)
    (expected, gradient), (found, ours) = both_ways(layer, images)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours, gradient)


def test_the_strided_gradient_is_never_taken() -> None:
    """Whatever module calls the convolution: what runs has stride 1."""
    layer = nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False)
    images = torch.randn(2, 4, 8, 8, requires_grad=True)
    with UnitStride():
        out = F.conv2d(images, layer.weight, stride=2, padding=1, groups=4)
        kept = nn.Conv2d(4, 4, 3, 2, 1, groups=2)(images)
    assert out.grad_fn is not None and "Slice" in out.grad_fn.name()
    assert kept.grad_fn is not None and "Convolution" in kept.grad_fn.name()
    assert out.shape == kept.shape == (2, 4, 4, 4)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 4, 1, 2, groups=2)])
def test_other_convolutions_keep_their_bytes(layer: nn.Module) -> None:
    (expected, gradient), (found, ours) = both_ways(layer, torch.randn(2, 4, 9, 9))
    assert torch.equal(found, expected) and torch.equal(ours, gradient)


def test_an_engine_in_bfloat16_computes_within_it(
    tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = depthwise.conv2d

    def watched(*arguments: Any, **options: Any) -> Tensor:
        seen.append(arguments)
        result: Tensor = real(*arguments, **options)
        return result

    monkeypatch.setattr(depthwise, "conv2d", watched)
    for precision, called in (("float32", False), ("bfloat16", True)):
        with Engine(load(tiny)[1], Objective(), precision) as engine:  # type: ignore[arg-type]
            engine.step(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), torch.ones(2, 2))
        assert bool(seen) == called
