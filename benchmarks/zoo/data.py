"""The data sets of the zoo: subsets, sizes and colours of CIFAR-10 and Fashion-MNIST."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.teachers.fashion import NAMES as FASHION
from benchmarks.teachers.fashion import read_split
from pipeline.dataset.stream import ordered_batches

VEHICLES = ("airplane", "automobile", "ship", "truck")
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Data:
    """Images of some classes, with ``channels`` and ``side``."""

    classes: tuple[str, ...]
    channels: int
    side: int


DATA: dict[str, Data] = {
    "cifar10": Data(CIFAR10, 3, 32),
    "cifar10-grey": Data(CIFAR10, 1, 32),
    "cifar10-64": Data(CIFAR10, 3, 64),
    "vehicles": Data(VEHICLES, 3, 32),
    "animals": Data(ANIMALS, 3, 32),
    "cat-dog": Data(("cat", "dog"), 3, 32),
    "fashion": Data(FASHION, 1, 28),
    "fashion-48": Data(FASHION, 1, 48),
    "fashion-colour": Data(FASHION, 3, 32),
    "mix": Data(CIFAR10 + FASHION, 3, 32),
}


def read(folder: Path, name: str, split: str, images: int | None = None) -> tuple[Tensor, Tensor]:
    """Read a data set.

    Args:
        folder: It holds ``cifar10/train-*.tar``, ``cifar10/test-*.tar`` and the four IDX files in
            ``fashion``.
        name: A name of :data:`DATA`.
        split: :data:`TRAIN` or :data:`TEST`.
        images: Read so many images, chosen by a fixed permutation. None: all, in this order.

    Returns:
        Pixels, uint8 ``[N, C, H, W]``, and labels, int64 ``[N]``.
    """
    data = DATA[name]
    pixels, labels = [], []
    for origin, names in (("cifar10", CIFAR10), ("fashion", FASHION)):
        if not set(names) & set(data.classes):
            continue
        found, numbers = _origin(folder, origin, split)
        places = [data.classes.index(each) if each in data.classes else -1 for each in names]
        new = torch.tensor(places)[numbers]
        pixels.append(fit(found[new >= 0], data.channels, data.side))
        labels.append(new[new >= 0])
    every = torch.cat(labels)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:images]
    return torch.cat(pixels)[order], every[order]


def fit(pixels: Tensor, channels: int, side: int) -> Tensor:
    """Change the number of channels and the size of square images, uint8 ``[N, C, H, W]``."""
    if pixels.shape[1] != channels:
        few = pixels.float().mean(1, keepdim=True).round().to(torch.uint8)
        pixels = few if channels == 1 else pixels.expand(-1, channels, -1, -1)
    if pixels.shape[2] == side:
        return pixels
    parts = [
        F.interpolate(part.float(), (side, side), mode="bilinear", antialias=True)
        for part in pixels.split(1000)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


@functools.cache
def _origin(folder: Path, origin: str, split: str) -> tuple[Tensor, Tensor]:
    """All images of a published data set."""
    if origin == "fashion":
        return read_split(folder / origin, "train" if split == TRAIN else "t10k")
    tars = sorted((folder / origin).glob(f"{split}-*.tar"))
    pixels, labels = zip(*ordered_batches(tars, 1000), strict=True)
    return torch.cat(pixels), torch.cat(labels)
