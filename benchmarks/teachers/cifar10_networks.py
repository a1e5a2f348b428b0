"""Factories of networks for 32x32 images that papers on data-free distillation report.

ResNet-18 and ResNet-34 are those of He et al. 2015, section 3, for small images: a 3x3 stem of
stride 1 and no max pooling. WideResNets are those of Zagoruyko and Komodakis 2016, section 2, with
BatchNorm and ReLU before each convolution. A ``teacher.source`` is for example
``benchmarks.teachers.cifar10_networks:resnet34``. ``width`` is the width of the first stage, which
tests set below that of the papers.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Basic(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 convolution where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                _convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Four stages of ``blocks``. Each has twice the width and half the size of the one before."""

    def __init__(self, blocks: tuple[int, int, int, int], classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = _convolution(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        inputs = width
        for number, count in enumerate(blocks):
            outputs = width * 2**number
            for index in range(count):
                stages.append(Basic(inputs, outputs, 2 if number and not index else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.linear = nn.Linear(inputs, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


class Wide(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, twice. The projection shares the first two."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _convolution(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 3)
        self.projection = None if inputs == outputs else _convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.projection is None else self.projection(active))


class WideResNet(nn.Module):
    """Three stages from ``widen * width`` channels on, ``6 n + 4`` layers deep."""

    def __init__(self, depth: int, widen: int, classes: int, width: int) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"a WideResNet has 6 n + 4 layers, not {depth}")
        self.conv1 = _convolution(3, width, 3)
        stages: list[nn.Module] = []
        inputs = width
        for number in range(3):
            outputs = width * widen * 2**number
            for index in range((depth - 4) // 6):
                stages.append(Wide(inputs, outputs, 2 if number and not index else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


def resnet18(classes: int = 10, width: int = 64) -> nn.Module:
    return ResNet((2, 2, 2, 2), classes, width)


def resnet34(classes: int = 10, width: int = 64) -> nn.Module:
    return ResNet((3, 4, 6, 3), classes, width)


def wrn40_2(classes: int = 10, width: int = 16) -> nn.Module:
    return WideResNet(40, 2, classes, width)


def wrn16_1(classes: int = 10, width: int = 16) -> nn.Module:
    return WideResNet(16, 1, classes, width)


def _convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)


def _initialise(network: nn.Module) -> None:
    """Initialise as He et al. 2015 ("Delving Deep into Rectifiers"): layers keep the variance."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
