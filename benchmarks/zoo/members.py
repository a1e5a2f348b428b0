"""The members of the zoo: data, network, training and input convention of each teacher.

The members differ in what the networks of users differ in. Their two halves follow from their names
alone: in the order of the SHA-256 of the names, the first, third, ... member is in the half
``development``, on which defaults are chosen. The others are in the half ``unseen``, which is
looked at once, at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.zoo.data import DATA, Data

DEVELOPMENT, UNSEEN = "development", "unseen"
WIDE: dict[str, Any] = {
    "patch": 2,
    "widths": (32, 64, 128),
}  # As much work as widths of 16 to 64 with patch 1.

# Input conventions: mean and std of (pixel / 255 - mean) / std.
UNIT = (0.0, 1.0)
BYTES = (0.0, 1 / 255)
SIGNED = (0.5, 0.5)
CIFAR = (0.473, 0.252)
FASHION = (0.286, 0.353)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a teacher is trained. The rate rises for a fifth of the steps and then falls to zero."""

    optimizer: str = "sgd"
    """``sgd`` (with Nesterov momentum), ``adam`` or ``adamw``."""
    rate: float = 0.1
    decay: float = 5e-4
    smoothing: float = 0.0
    mixup: bool = False
    augmentation: str = "usual"
    """``none``, ``usual`` (shifts and flips) or ``heavy`` (also holes and colours)."""
    epochs: float = 6.0
    images: int | None = None
    """Training images. None: all."""
    start: str | None = None
    """Train on this data set first, for as many epochs. Then fine-tune with a new last layer and
    frozen BatchNorm statistics."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A teacher of the zoo. ``family`` is a factory of :mod:`benchmarks.zoo.networks`."""

    family: str
    on: str = "cifar10"
    network: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe = Recipe()
    units: tuple[Any, Any] = CIFAR

    @property
    def data(self) -> Data:
        return DATA[self.on]

    @property
    def source(self) -> str:
        return f"benchmarks.zoo.networks:{self.family}"

    @property
    def arguments(self) -> dict[str, Any]:
        shape = {"classes": len(self.data.classes), "channels": self.data.channels}
        return {**shape, **self.network}

    @property
    def input(self) -> dict[str, Any]:
        """The section ``teacher.input``."""
        mean, std = (
            list(value) if isinstance(value, tuple) else [value] * self.data.channels
            for value in self.units
        )
        shape = {"channels": self.data.channels, "height": self.data.side, "width": self.data.side}
        return {**shape, "mean": mean, "std": std}


def halves() -> dict[str, str]:
    """The half of each member, by its name."""
    order = sorted(MEMBERS, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return {name: (DEVELOPMENT, UNSEEN)[place % 2] for place, name in enumerate(order)}


ADAM: dict[str, Any] = {"optimizer": "adam", "rate": 3e-3, "decay": 0.0}
ADAMW: dict[str, Any] = {"optimizer": "adamw", "rate": 3e-3, "decay": 0.05}
KERAS: dict[str, Any] = {"momentum": 0.01, "eps": 1e-3}  # BatchNorm as in Keras.

MEMBERS: dict[str, Member] = {
    "residual": Member(family="residual", network=WIDE, units=IMAGENET, recipe=Recipe(epochs=7)),
    "residual-no-decay": Member(
        family="residual", recipe=Recipe(decay=0.0, augmentation="none", epochs=5)
    ),
    "residual-bytes": Member(
        family="residual", network={**WIDE, **KERAS}, units=BYTES, recipe=Recipe(**ADAM)
    ),
    "plain-adam": Member(
        family="plain", network={"down": "max"}, units=UNIT, recipe=Recipe(**ADAM)
    ),
    "plain-gelu": Member(
        family="plain",
        network={
            **WIDE,
            "activation": "gelu",
            "down": "average",
            "head": "flatten",
            "dropout": 0.3,
            "inside": (121.0, 64.0),
        },
        units=BYTES,
        recipe=Recipe(**ADAMW),
    ),
    "preactivation-smoothing": Member(
        family="preactivation", network=WIDE, units=SIGNED, recipe=Recipe(smoothing=0.1)
    ),
    "depthwise-relu6": Member(
        family="depthwise",
        network={
            "patch": 2,
            "widths": (48, 96, 192),
            "blocks": 2,
            "activation": "relu6",
            **KERAS,
        },
        units=SIGNED,
        recipe=Recipe(decay=4e-5, epochs=7),
    ),
    "dense-mixup": Member(
        family="dense", network=WIDE, units=UNIT, recipe=Recipe(mixup=True, epochs=8)
    ),
    "squeeze-heavy": Member(
        family="squeeze",
        network={**WIDE, "activation": "silu"},
        recipe=Recipe(**ADAMW, augmentation="heavy"),
    ),
    "layer-norm": Member(
        family="residual",
        network={**WIDE, "norm": "layer"},
        units=(0.5, 1.0),
        recipe=Recipe(**ADAMW),
    ),
    "group-norm": Member(
        family="residual",
        network={**WIDE, "norm": "group"},
        recipe=Recipe(rate=0.05),
    ),
    "over-trained": Member(
        family="residual",
        network=WIDE,
        recipe=Recipe(images=8000, epochs=30, decay=0.0, augmentation="none"),
    ),
    "under-trained": Member(family="plain", network=WIDE, recipe=Recipe(epochs=1)),
    "quantised": Member(
        family="residual",
        network={**WIDE, "activation": "relu6", "bits": 4},
        recipe=Recipe(epochs=4),
    ),
    "grey-preactivation": Member(
        on="cifar10-grey", family="preactivation", network={**WIDE, "head": "max"}
    ),
    "grey-plain": Member(
        on="cifar10-grey",
        family="plain",
        network={"down": "max", "inside": "batchnorm"},
        units=BYTES,
        recipe=Recipe(mixup=True),
    ),
    "mix-residual": Member(
        on="mix", family="residual", network=WIDE, units=IMAGENET, recipe=Recipe(epochs=3.5)
    ),
    "mix-plain": Member(
        on="mix",
        family="plain",
        network={**WIDE, "activation": "silu", "eps": 1e-3},
        units=SIGNED,
        recipe=Recipe(**ADAMW, smoothing=0.1, epochs=3.5),
    ),
    "vehicles-vit": Member(
        on="vehicles",
        family="vit",
        units=SIGNED,
        recipe=Recipe(optimizer="adamw", rate=1e-3, decay=0.05, epochs=15),
    ),
    "animals-frozen": Member(
        on="animals",
        family="residual",
        network=WIDE,
        recipe=Recipe(start="cifar10", epochs=5, rate=0.02),
    ),
    "cat-dog-plain": Member(
        on="cat-dog",
        family="plain",
        network={**WIDE, "head": "flatten", "dropout": 0.5},
        recipe=Recipe(rate=0.05, epochs=30),
    ),
    "large-residual": Member(
        on="cifar10-64",
        family="residual",
        network={"patch": 2, "widths": (16, 32, 64, 128), "activation": "silu", "momentum": 0.03},
        units=IMAGENET,
        recipe=Recipe(images=25_000, augmentation="heavy", epochs=10),
    ),
    "fashion-residual-no-decay": Member(
        on="fashion",
        family="residual",
        units=FASHION,
        recipe=Recipe(decay=0.0, augmentation="none", epochs=5),
    ),
    "fashion-plain-adam": Member(
        on="fashion",
        family="plain",
        network={"down": "max", "head": "flatten", "dropout": 0.3},
        units=UNIT,
        recipe=Recipe(**ADAM, augmentation="none", epochs=5),
    ),
    "fashion-depthwise-bytes": Member(
        on="fashion",
        family="depthwise",
        network={"widths": (32, 64, 128), **KERAS},
        units=BYTES,
        recipe=Recipe(**ADAM, epochs=5),
    ),
    "fashion-dense": Member(
        on="fashion",
        family="dense",
        network={"widths": (24, 48, 96)},
        units=SIGNED,
        recipe=Recipe(smoothing=0.1, epochs=4),
    ),
    "fashion-convnext": Member(
        on="fashion", family="convnext", units=FASHION, recipe=Recipe(**ADAMW, epochs=4)
    ),
    "fashion-vit": Member(
        on="fashion",
        family="vit",
        network={"side": 28},
        units=FASHION,
        recipe=Recipe(optimizer="adamw", rate=1e-3, decay=0.05, epochs=5),
    ),
    "fashion-48-squeeze": Member(
        on="fashion-48",
        family="squeeze",
        network={"patch": 2, "activation": "relu6"},
        units=SIGNED,
        recipe=Recipe(mixup=True, epochs=4),
    ),
    "fashion-frozen": Member(
        on="fashion-colour",
        family="preactivation",
        network=WIDE,
        units=IMAGENET,
        recipe=Recipe(start="cifar10", epochs=3, rate=0.02),
    ),
}

# The judge of a teacher is the first one of another family.
CIFAR10_JUDGES = ("plain-adam", "residual")
JUDGES: dict[str, tuple[str, str]] = {
    "cifar10": CIFAR10_JUDGES,
    "cifar10-grey": ("grey-plain", "grey-preactivation"),
    "cifar10-64": CIFAR10_JUDGES,
    "vehicles": CIFAR10_JUDGES,
    "animals": CIFAR10_JUDGES,
    "cat-dog": CIFAR10_JUDGES,
    "fashion": ("fashion-plain-adam", "fashion-residual-no-decay"),
    "fashion-48": ("fashion-plain-adam", "fashion-residual-no-decay"),
    "fashion-colour": ("fashion-plain-adam", "fashion-residual-no-decay"),
    "mix": ("mix-plain", "mix-residual"),
}


def judge_of(name: str) -> str:
    """The member that judges the images of another."""
    family = MEMBERS[name].family
    return next(each for each in JUDGES[MEMBERS[name].on] if MEMBERS[each].family != family)
