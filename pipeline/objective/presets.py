"""The weights and settings of an inversion, and the presets that a user can name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

FeatureForm = Literal["normalised", "published"]
Start = Literal["white", "low-frequency", "grey", "varied"]
Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The weights of the terms and how the pixels are moved to lower their sum.

    ``classification * L + tv * R_TV + l2 * R_l2 + feature * R_feature + compete * R_compete``

    Learning rate and jitter are in units of the teacher's normalised space and of pixels.

    Images differ most where each has weights of its own: a ``spread`` ``s`` of a term's weight
    multiplies it, for each image, by ``e^u`` with ``u`` uniform in ``[-s, s]``. ``ambiguity`` is
    the most that one other class may have of an image's target probability; ``masked`` leaves
    R_compete to images on which the student decides as the teacher does.

    The last four are off unless a preset sets them. ``colour`` is the greatest change of contrast
    (its logarithm) and of brightness that each channel of an image is shown under, drawn anew each
    step; ``zoom`` the smallest side of the crop that the whole batch is shown as, a share of the
    image's: at each step, or, where ``zoom_schedule`` is cosine, at the last, from whole images on
    (the crop curriculum of Yin and Shen 2023, "Dataset Distillation in Large Data Era"); ``coarse``
    the share of the iterations in which images have half the size.
    """

    classification: float = 1.0
    tv: float = 4e-3
    l2: float = 0.0
    feature: float = 10.0
    compete: float = 10.0  # in adaptive rounds, which have a student
    masked: bool = False
    classification_spread: float = 0.0
    tv_spread: float = 0.0
    ambiguity: float = 0.0
    feature_form: FeatureForm = "normalised"
    start: Start = "low-frequency"
    learning_rate: float = 0.4
    betas: tuple[float, float] = (0.5, 0.9)
    warmup: int = 10
    schedule: Schedule = "cosine"
    jitter: int = 2
    flip: bool = True
    clamp: bool = True
    colour: float = 0.0
    zoom: float = 1.0
    zoom_schedule: Schedule = "constant"
    coarse: float = 0.0


# The published code takes one norm over a batch of 256 where R_TV and R_l2 here are means of one
# norm an image, as in the equations; the gradients agree when the weight is sqrt(256) times
# as large.
_PER_IMAGE = 16.0
_CIFAR10 = Objective(
    compete=0.0,
    tv=2.5e-5 * _PER_IMAGE,
    l2=3e-8 * _PER_IMAGE,
    feature=10.0,
    feature_form="published",
    start="white",
    learning_rate=0.05,
    betas=(0.9, 0.999),
    warmup=0,
    schedule="constant",
    jitter=2,
    flip=False,
    clamp=False,
)
_IMAGENET = Objective(
    compete=0.0,
    tv=1e-4 * _PER_IMAGE,
    l2=1e-5 * _PER_IMAGE,
    feature=0.01,
    feature_form="published",
    start="white",
    learning_rate=0.25,
    warmup=100,
    jitter=30,
)
# Half of the size for a while costs less, and students learn as much: docs/students.md.
_MEDIUM = Objective(coarse=0.3)
# From strong noise at a high rate large images stay noise with the class written into it.
_LARGE = Objective(start="grey", tv=0.06, learning_rate=0.1, jitter=16, coarse=0.6)
# Without BatchNorm nothing but the priors keeps an image from being noise that the teacher alone
# reads as a class: it has to stay that class under changes of colour, place and size.
_WITHOUT = Objective(tv=0.04, learning_rate=0.2, colour=0.5, zoom=0.7, coarse=0.25)
PRESETS: dict[str, Objective] = {
    "normalised": Objective(),
    "normalised-medium": _MEDIUM,
    "normalised-large": _LARGE,
    "without-batchnorm": _WITHOUT,
    "without-batchnorm-large": replace(_WITHOUT, jitter=16, zoom=0.5, coarse=0.5),
    "deepdream-cifar10": replace(_CIFAR10, feature=0.0),
    "deepinversion-cifar10": _CIFAR10,
    "adaptive-cifar10": replace(_CIFAR10, compete=10.0),
    "deepdream-imagenet": replace(_IMAGENET, feature=0.0),
    "deepinversion-imagenet": _IMAGENET,
    "adaptive-imagenet": replace(_IMAGENET, compete=0.2),
}
