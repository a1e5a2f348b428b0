"""The layers and blocks of the zoo's convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.teachers.grey_networks import Normalise

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a convolutional network is made of."""

    classes: int = 10
    channels: int = 3
    widths: Sequence[int] = (16, 32, 64)
    """Channels of each stage. Each stage has half the side of the one before."""
    blocks: int = 1
    """Blocks of each stage."""
    patch: int = 1
    """Stride of the first convolution."""
    down: str = "stride"
    """What halves the side between two stages: ``stride``, ``max`` or ``average`` pooling."""
    head: str = "average"
    """How the last feature map becomes a vector: ``average``, ``max`` or ``flatten``."""
    dropout: float = 0.0
    inside: Sequence[float] | str | None = None
    """Mean and std by which the network itself standardises its input, or ``batchnorm``."""
    activation: str = "relu"
    norm: str = "batch"
    """``batch``, ``layer`` (over the channels), ``group`` or ``none``."""
    momentum: float = 0.1
    eps: float = 1e-5
    bits: int | None = None
    """Bits of weights that are rounded in training too. ReLU6 is then rounded to 8 bits."""

    def convolution(
        self, inputs: int, outputs: int, side: int = 3, stride: int = 1, groups: int = 1
    ) -> nn.Module:
        bias = self.norm == "none"
        shape = (inputs, outputs, side, stride, side // 2, 1, groups, bias)
        return nn.Conv2d(*shape) if self.bits is None else Rounded(*shape, bits=self.bits)

    def normalise(self, width: int) -> nn.Module:
        if self.norm == "batch":
            return nn.BatchNorm2d(width, self.eps, self.momentum)
        if self.norm == "group":
            return nn.GroupNorm(GROUPS, width, self.eps)
        return Normalise(width) if self.norm == "layer" else nn.Identity()

    def activate(self) -> nn.Module:
        return ACTIVATIONS[self.activation]() if self.bits is None else RoundedReLU6()

    def unit(
        self, inputs: int, outputs: int, side: int = 3, stride: int = 1, groups: int = 1
    ) -> nn.Sequential:
        """A convolution, a normalisation and an activation."""
        convolution = self.convolution(inputs, outputs, side, stride, groups)
        return nn.Sequential(convolution, self.normalise(outputs), self.activate())


class Rounded(nn.Conv2d):
    """A convolution whose weights are rounded to ``bits`` bits, with one scale a channel."""

    zero: Tensor

    def __init__(self, *shape: Any, bits: int) -> None:
        super().__init__(*shape)
        self.most = 2 ** (bits - 1) - 1
        self.register_buffer("zero", torch.zeros(self.out_channels, dtype=torch.int32), False)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.detach().abs().amax((1, 2, 3)).clamp_min(1e-8) / self.most
        weight = torch.fake_quantize_per_channel_affine(
            self.weight, scale, self.zero, 0, -self.most, self.most
        )
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


class RoundedReLU6(nn.Module):
    """ReLU6 whose result is rounded to 256 values."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(F.relu6(x), 6 / 255, 0, 0, 255)


class Standardise(nn.Module):
    """Subtract a mean and divide by a standard deviation, both fixed."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Block(Protocol):
    """A factory of blocks."""

    def __call__(self, inputs: int, outputs: int, stride: int, options: Options) -> nn.Module: ...


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut; ``squeeze`` weighs the channels before the sum."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, options: Options, squeeze: bool = False
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            options.unit(inputs, outputs, 3, stride),
            options.convolution(outputs, outputs),
            options.normalise(outputs),
            Squeeze(outputs) if squeeze else nn.Identity(),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = options.convolution(inputs, outputs, 1, stride)
            self.shortcut = nn.Sequential(projection, options.normalise(outputs))
        self.activation = options.activate()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return out


class Squeeze(nn.Module):
    """Squeeze and excitation: weigh each channel by a function of the means of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.weigh(x.mean((2, 3)))
        return x * weights[:, :, None, None]


class PreActivation(nn.Module):
    """Normalisation and activation before each convolution, around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, options: Options) -> None:
        super().__init__()
        self.first = nn.Sequential(options.normalise(inputs), options.activate())
        self.body = nn.Sequential(
            options.convolution(inputs, outputs, 3, stride),
            options.normalise(outputs),
            options.activate(),
            options.convolution(outputs, outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else options.convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.first(x)
        out: Tensor = self.body(active)
        return out + (x if self.shortcut is None else self.shortcut(active))


class Dense(nn.Module):
    """Four 3x3 convolutions. Each sees what all before it made. The first step halves the width."""

    def __init__(self, inputs: int, outputs: int, stride: int, options: Options) -> None:
        super().__init__()
        kept, growth = outputs // 2, outputs // 8
        self.transition = nn.Sequential(
            options.unit(inputs, kept, 1), nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        )
        self.layers = nn.ModuleList(
            nn.Sequential(
                options.normalise(kept + number * growth),
                options.activate(),
                options.convolution(kept + number * growth, growth),
            )
            for number in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def plain_block(inputs: int, outputs: int, stride: int, options: Options) -> nn.Module:
    return nn.Sequential(options.unit(inputs, outputs, 3, stride), options.unit(outputs, outputs))


def squeeze_block(inputs: int, outputs: int, stride: int, options: Options) -> nn.Module:
    return Residual(inputs, outputs, stride, options, squeeze=True)


def depthwise_block(inputs: int, outputs: int, stride: int, options: Options) -> nn.Module:
    """MobileNetV1's block: a depthwise 3x3 and a 1x1 convolution."""
    return nn.Sequential(
        options.unit(inputs, inputs, 3, stride, groups=inputs), options.unit(inputs, outputs, 1)
    )
