"""A fully convolutional segmenter with BatchNorm, of about 100,000 weights, and its training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.segmenter.shapes import CLASSES, draw

MEAN, STD = 0.5, 0.25  # of every channel
STEPS, BATCH, EVALUATION = 400, 32, 512


def _unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Segmenter(nn.Module):
    """Three sizes down and up again, with connections between equal sizes.

    It returns a dictionary, as the segmenters of torchvision do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = _unit(3, 16)
        self.second = nn.Sequential(_unit(16, 32, 2), _unit(32, 32))
        self.third = nn.Sequential(_unit(32, 64, 2), _unit(64, 64))
        self.up_second = _unit(64 + 32, 32)
        self.up_first = _unit(32 + 16, 16)
        self.head = nn.Conv2d(16, len(CLASSES), 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The logits of each pixel as ``out``, ``[B, classes, H, W]``."""
        full = self.first(images)
        half = self.second(full)
        quarter = self.third(half)
        half = self.up_second(torch.cat([_double(quarter), half], 1))
        full = self.up_first(torch.cat([_double(half), full], 1))
        return {"out": self.head(full)}


def _double(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="nearest")


def segmenter() -> nn.Module:
    """The factory that the parameters name."""
    return Segmenter()


def normalise(pixels: Tensor) -> Tensor:
    """The segmenter's input of uint8 pixels."""
    return (pixels.float() / 255 - MEAN) / STD


def train(seed: int = 0, steps: int = STEPS) -> Segmenter:
    """Train on new pictures in every step."""
    torch.manual_seed(seed)
    network = Segmenter()
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        pixels, classes = (torch.from_numpy(part) for part in draw(BATCH, seed=1000 + step))
        loss = F.cross_entropy(network(normalise(pixels))["out"], classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def mean_iou(answers: Tensor, classes: Tensor) -> float:
    """The intersection over union of predicted and true pixels, mean over the classes.

    Args:
        answers: Predicted classes, ``[N, H, W]``.
        classes: True classes, ``[N, H, W]``.
    """
    shares = []
    for number in range(len(CLASSES)):
        said, true = answers == number, classes == number
        shares.append(((said & true).sum() / (said | true).sum().clamp_min(1)).item())
    return sum(shares) / len(shares)
