"""Small networks of many families, as factories whose arguments say in what they differ.

A ``teacher.source`` is for example ``benchmarks.zoo.networks:residual``. All factories of
convolutional networks take the fields of :class:`~benchmarks.zoo.blocks.Options`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.teachers.grey_networks import ConvNeXtBlock, Normalise, TransformerBlock
from benchmarks.zoo.blocks import (
    Block,
    Dense,
    Options,
    PreActivation,
    Residual,
    Standardise,
    depthwise_block,
    plain_block,
    squeeze_block,
)


def _network(block: Block, options: Options, stem: bool = True, last: bool = False) -> nn.Module:
    """Put a network together.

    Args:
        block: The blocks of its stages.
        options: What it is made of.
        stem: The first convolution has a normalisation and an activation.
        last: The last block is followed by a normalisation and an activation.
    """
    layers: list[nn.Module] = []
    if isinstance(options.inside, str):
        layers.append(nn.BatchNorm2d(options.channels, options.eps, options.momentum))
    elif options.inside is not None:
        layers.append(Standardise(*options.inside))
    width = options.widths[0]
    first = options.unit if stem else options.convolution
    layers.append(first(options.channels, width, 3, options.patch))
    for stage, outputs in enumerate(options.widths):
        if stage and options.down != "stride":
            layers.append(nn.MaxPool2d(2) if options.down == "max" else nn.AvgPool2d(2))
        for number in range(options.blocks):
            halves = stage > 0 and number == 0 and options.down == "stride"
            layers.append(block(width, outputs, 2 if halves else 1, options))
            width = outputs
    if last:
        layers += [options.normalise(width), options.activate()]
    side = 4 if options.head == "flatten" else 1
    layers.append((nn.AdaptiveMaxPool2d if options.head == "max" else nn.AdaptiveAvgPool2d)(side))
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Dropout(options.dropout),
        nn.Linear(width * side**2, options.classes),
    )


def plain(**options: Any) -> nn.Module:
    """Pairs of 3x3 convolutions, as VGG."""
    return _network(plain_block, Options(**options))


def residual(**options: Any) -> nn.Module:
    """A ResNet of basic blocks."""
    return _network(Residual, Options(**options))


def squeeze(**options: Any) -> nn.Module:
    """A ResNet with squeeze and excitation."""
    return _network(squeeze_block, Options(**options))


def preactivation(**options: Any) -> nn.Module:
    """A ResNet of pre-activation blocks."""
    return _network(PreActivation, Options(**options), stem=False, last=True)


def depthwise(**options: Any) -> nn.Module:
    """Depthwise and 1x1 convolutions, as MobileNetV1."""
    return _network(depthwise_block, Options(**options))


def dense(**options: Any) -> nn.Module:
    """Densely connected blocks, as DenseNet."""
    return _network(Dense, Options(**options), last=True)


def convnext(
    classes: int = 10, channels: int = 3, widths: Sequence[int] = (32, 64), blocks: int = 2
) -> nn.Module:
    """ConvNeXt-style: patches of 2x2 pixels, LayerNorm and GELU."""
    layers: list[nn.Module] = []
    inputs = channels
    for width in widths:
        layers += [nn.Conv2d(inputs, width, 2, 2), Normalise(width)]
        layers += [ConvNeXtBlock(width) for _ in range(blocks)]
        inputs = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(inputs)]
    return nn.Sequential(*layers, *head, nn.Linear(inputs, classes))


class ViT(nn.Module):
    """A vision transformer: patches of 4x4 pixels, learned positions, mean of the tokens."""

    def __init__(self, classes: int, channels: int, side: int, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(channels, width // 2, 3, 2, 1), nn.GELU(), nn.Conv2d(width // 2, width, 2, 2)
        )
        self.positions = nn.Parameter(0.02 * torch.randn(1, (side // 4) ** 2, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, 4) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


def vit(
    classes: int = 10, channels: int = 3, side: int = 32, width: int = 64, depth: int = 4
) -> nn.Module:
    """A small vision transformer."""
    return ViT(classes, channels, side, width, depth)
