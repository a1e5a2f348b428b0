"""The weights and settings of an inversion (:class:`Objective`) and the presets for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pipeline.objective.ranges import (
    Count,
    Decay,
    Few,
    Fraction,
    Rate,
    ScaleCount,
    Share,
    Spread,
    Weight,
)

FeatureForm = Literal["normalised", "published"]
Start = Literal["white", "low-frequency", "grey", "varied", "procedural"]
Schedule = Literal["cosine", "constant"]
Units = Literal["image", "teacher"]
MEDIUM, LARGE = 32, 96
"""Shorter side of an image in pixels from which presets with these names fit."""

_CHECKED = ConfigDict(strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, slots=True, config=_CHECKED)
class Objective:
    """The weights of the terms, and how the pixels are optimised.

    The loss is ``classification L + tv R_TV + l2 R_l2 + feature R_feature + compete R_compete``.
    ``pipeline/objective/terms.py`` defines the terms. A weight of 0 switches a term off.

    Every field but those of R_compete, the last five, is a key of ``synthesis.objective`` in the
    parameters, with the field's type and docstring. Those five are keys of ``adaptive``. The
    defaults are the preset ``normalised``.

    Raises:
        ValueError: A value is outside of its range.

    Example:
        >>> replace(PRESETS["normalised-large"], tv=0.1).tv
        0.1
    """

    classification: Weight = 1.0
    """Weight of the cross-entropy between the teacher's logits and the label, at least 0."""

    classification_spread: Spread = 0.0
    """Spread ``s`` of that weight, 0 to 10: each image multiplies it by ``e^u``, ``u`` uniform in
    ``[-s, s]``. 0 gives all images the same weight."""

    tv: Weight = 4e-3
    """Weight of R_TV, the total variation, at least 0. More makes images smoother."""

    tv_spread: Spread = 0.0
    """Spread of the weight of R_TV, as ``classification_spread``."""

    l2: Weight = 0.0
    """Weight of R_l2, the norm of an image, at least 0."""

    feature: Weight = 10.0
    """Weight of R_feature, the distance to the teacher's BatchNorm statistics, at least 0."""

    feature_form: FeatureForm = "normalised"
    """Form of R_feature: ``normalised`` (in units of the running variance) or ``published`` (as in
    the paper)."""

    start: Start = "low-frequency"
    """Starting images: ``low-frequency``, ``varied``, ``grey`` or ``white`` noise, or
    ``procedural`` pictures of random textures and shapes."""

    draws: Few = 1
    """Starting images that are drawn for each image made, 1 to 1024. From 2 on the teacher selects
    one of them: the one that it recognises most surely as the class. 1: no selection."""

    units: Units = "image"
    """Units of the optimised images. ``image``: pixel / 255, minus 0.45, over 0.25, whatever input
    the teacher expects. ``teacher``: the teacher's normalised input, as in the paper."""

    learning_rate: Rate = 0.4
    """Learning rate of Adam in these units, above 0."""

    betas: tuple[Decay, Decay] = (0.5, 0.9)
    """The two decays of Adam, each from 0 to below 1."""

    # At most half of the iterations. Images of half size and of full size have a warmup each.
    warmup: Count = 10
    """Iterations in which the learning rate rises from near 0, at least 0."""

    schedule: Schedule = "cosine"
    """Learning rate after the warmup: ``cosine`` (falls to 0) or ``constant``."""

    jitter: Count = 2
    """Largest random shift of the images at each iteration, in pixels, at least 0."""

    flip: bool = True
    """Mirror images left to right at random at each iteration. Set false where a mirrored image has
    another class, as for digits."""

    clamp: bool = True
    """Keep pixels in the range that can be stored after each iteration."""

    colour: Weight = 0.0
    """Largest random change of contrast (its logarithm) and brightness of each channel at each
    iteration, at least 0. 0: none."""

    zoom: Share = 1.0
    """Smallest side of the random crop of an iteration as a share of the image's side, above 0 and
    at most 1. 1: no crop."""

    # ``cosine`` is the crop curriculum of Yin and Shen 2023, "Dataset Distillation in Large Data
    # Era".
    zoom_schedule: Schedule = "constant"
    """``constant``: crops as small as ``zoom`` from the first iteration on. ``cosine``: whole
    images first, crops as small as ``zoom`` only at the end."""

    coarse: Fraction = 0.0
    """Share of the iterations, the first ones, in which images have half the size; 0 to 1."""

    scales: ScaleCount = 1
    """Number of sizes at which images are optimised together, 1 to 12: full size, half of it, a
    quarter and so on. 1: the pixels themselves. More lets brightness, colour and large shapes
    form as fast as details."""

    ambiguity: Fraction = 0.0
    """Largest part of an image's target probability that goes to one other class, 0 to 1."""

    compete: Weight = 1.0
    """Weight of R_compete, the agreement with the student. At least 0. Adaptive rounds only."""

    compete_until: Fraction = 0.5
    """Share of the iterations, the first ones, in which R_compete counts, 0 to 1."""

    masked: bool = False
    """Whether R_compete counts only where the student predicts the teacher's class."""

    temperature: Rate = 1.0
    """Divides the logits in R_compete, above 0."""

    confident: Fraction = 0.0
    """Lowest probability of an image's class at which R_compete counts, 0 to 1."""


# The published code takes one norm over a batch of 256 images. R_TV and R_l2 here are means of one
# norm for each image, as in the equations. The gradients agree with a weight sqrt(256) times as
# large.
_PER_IMAGE = 16.0
_CIFAR10 = Objective(
    compete=0.0,
    compete_until=1.0,
    tv=2.5e-5 * _PER_IMAGE,
    l2=3e-8 * _PER_IMAGE,
    feature=10.0,
    feature_form="published",
    start="white",
    units="teacher",
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
    compete_until=1.0,
    tv=1e-4 * _PER_IMAGE,
    l2=1e-5 * _PER_IMAGE,
    feature=0.01,
    feature_form="published",
    start="white",
    units="teacher",
    learning_rate=0.25,
    warmup=100,
    jitter=30,
)
# Half the size for a part of the iterations costs less, and students learn as much from the images
# (docs/results/students.md).
_MEDIUM = Objective(coarse=0.5)
# Large images that start from strong noise stay noisy, and images that are optimised pixel by pixel
# stay grey and look embossed. So they start grey, and large shapes have layers of their own.
# Crops and changed colours leave what another network recognises too (docs/results/teachers.md).
_LARGE = Objective(
    start="grey",
    tv=0.05,
    learning_rate=0.2,
    jitter=16,
    coarse=0.6,
    scales=5,
    zoom=0.3,
    colour=0.5,
)
# Without BatchNorm only the priors keep an image from becoming noise that the teacher alone
# recognises. The image must therefore keep its class under changes of colour, place and size.
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
"""The presets by the names that ``synthesis.objective.preset`` may have.

``normalised`` presets are for teachers with BatchNorm: for small images, for those from 32 pixels
(``-medium``) and from 96 pixels (``-large``). ``without-batchnorm`` presets are for other teachers.
The rest have the values of Yin et al. 2020: ``deepdream`` without R_feature, ``deepinversion`` with
it, and ``adaptive`` with R_compete too.
"""


def fitting_iterations(height: int, width: int) -> int:
    """The default number of gradient steps for images of ``height`` x ``width`` pixels.

    Large images need more steps until another network recognises them
    (docs/results/teachers.md).
    """
    return 400 if min(height, width) >= LARGE else 200
