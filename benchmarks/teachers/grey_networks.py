"""Small classifiers of several families for 28x28 grey images, with and without BatchNorm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from examples.cifar10 import Block


def vgg(classes: int = 10) -> nn.Module:
    """VGG-style: pairs of 3x3 convolutions with BatchNorm, and max pooling."""
    layers: list[nn.Module] = []
    inputs = 1
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [_convolution(inputs, width), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 9, classes))


def judge(classes: int = 10) -> nn.Module:
    """A plain CNN of another family: strided 5x5 and 3x3 convolutions, BatchNorm, pooling."""
    layers: list[nn.Module] = []
    for inputs, width, side, stride in (
        (1, 24, 5, 1),
        (24, 48, 3, 2),
        (48, 64, 3, 1),
        (64, 96, 3, 2),
    ):
        layers += [
            nn.Conv2d(inputs, width, side, stride, side // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, classes))


def resnet(classes: int = 10) -> nn.Module:
    """A small ResNet: a stem and three stages of the CIFAR-10 example, 24 to 96 wide."""
    blocks = [
        Block(inputs, outputs, stride)
        for inputs, outputs, stride in (
            (24, 24, 1),
            (24, 24, 1),
            (24, 48, 2),
            (48, 48, 1),
            (48, 96, 2),
            (96, 96, 1),
        )
    ]
    return nn.Sequential(
        nn.Sequential(_convolution(1, 24), nn.BatchNorm2d(24), nn.ReLU()),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, classes),
    )


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise convolution, project, and add."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        width = inputs * expand
        self.adds = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.adds else out


def mobilenet(classes: int = 10) -> nn.Module:
    """MobileNetV2-style: a stem of stride 2 and six inverted residuals."""
    blocks = [
        Inverted(inputs, outputs, stride)
        for inputs, outputs, stride in (
            (24, 24, 1),
            (24, 32, 1),
            (32, 32, 1),
            (32, 64, 2),
            (64, 64, 1),
            (64, 64, 1),
        )
    ]
    return nn.Sequential(
        nn.Sequential(_convolution(1, 24, 2), nn.BatchNorm2d(24), nn.ReLU6()),
        *blocks,
        nn.Sequential(nn.Conv2d(64, 160, 1, bias=False), nn.BatchNorm2d(160), nn.ReLU6()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(160, classes),
    )


class Normalise(nn.Module):
    """LayerNorm over the channels of ``[B, C, H, W]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class ConvNeXtBlock(nn.Module):
    """Depthwise 5x5, LayerNorm, and an MLP of 1x1 convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 5, 1, 2, groups=width),
            Normalise(width),
            nn.Conv2d(width, 3 * width, 1),
            nn.GELU(),
            nn.Conv2d(3 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def convnext(classes: int = 10) -> nn.Module:
    """ConvNeXt-style: a patch stem and two stages, LayerNorm throughout."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 2, 2),
        Normalise(32),
        ConvNeXtBlock(32),
        Normalise(32),
        nn.Conv2d(32, 80, 2, 2),
        *(ConvNeXtBlock(80) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(80),
        nn.Linear(80, classes),
    )


class TransformerBlock(nn.Module):
    """Attention and an MLP, each after a LayerNorm and around a shortcut. ``[B, N, width]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.query_key_value(self.before_attention(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        # On a CPU this is faster than fused attention if there are few tokens.
        weights = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(3)
        x = x + self.project((weights @ value).transpose(1, 2).reshape(batch, tokens, width))
        out: Tensor = x + self.mlp(self.before_mlp(x))
        return out


class ViT(nn.Module):
    """A vision transformer: a stem of three convolutions, learned positions, mean of the tokens."""

    def __init__(self, classes: int, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(1, 32, 5, 2, 2),
            nn.GELU(),
            nn.Conv2d(32, 32, 3, 1, 1),
            nn.GELU(),
            nn.Conv2d(32, width, 3, 2, 1),
        )
        self.positions = nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


def vit(classes: int = 10) -> nn.Module:
    """A small vision transformer."""
    return ViT(classes)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": vgg,
    "resnet": resnet,
    "mobilenet": mobilenet,
    "convnext": convnext,
    "vit": vit,
    "judge": judge,
}
