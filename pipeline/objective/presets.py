"""The weights and settings of an inversion (:class:`Objective`) and the presets for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

FeatureForm = Literal["normalised", "published"]
Start = Literal["white", "low-frequency", "grey", "varied"]
Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The weights of the terms, and how the pixels are optimised.

    The loss is ``classification L + tv R_TV + l2 R_l2 + feature R_feature + compete R_compete``.
    ``pipeline/objective/terms.py`` defines the terms. A weight of 0 switches a term off.

    Every field but ``compete`` and ``masked`` is a key of ``synthesis.objective`` in the
    parameters. Those two are keys of ``adaptive``. The defaults are the preset ``normalised``.

    Example:
        >>> replace(PRESETS["normalised-large"], tv=0.1).tv
        0.1
    """

    classification: float = 1.0
    """Weight of L, the cross-entropy against the image's label. At least 0."""

    tv: float = 4e-3
    """Weight of R_TV, the total variation of each image. At least 0. More gives smoother images."""

    l2: float = 0.0
    """Weight of R_l2, the Euclidean norm of each image. At least 0."""

    feature: float = 10.0
    """Weight of R_feature, the distance to the teacher's BatchNorm statistics. At least 0."""

    compete: float = 10.0
    """Weight of R_compete, the agreement with the student. At least 0. Adaptive rounds only."""

    masked: bool = False
    """Whether R_compete counts only where the student predicts the teacher's class."""

    classification_spread: float = 0.0
    """Spread ``s`` of the weight of L, in [0, 10]. Each image has its own weight, which is
    ``classification`` times ``e^u`` with ``u`` uniform in [-s, s]. It makes images more diverse."""

    tv_spread: float = 0.0
    """Spread of the weight of R_TV, in [0, 10]; see ``classification_spread``."""

    ambiguity: float = 0.0
    """Largest target probability of one other class, in [0, 1]. Each image draws its own."""

    feature_form: FeatureForm = "normalised"
    """Equation of R_feature: ``published`` is the paper's; ``normalised`` has no scale to tune."""

    start: Start = "low-frequency"
    """Noise that images start from: ``white``, ``low-frequency``, ``grey`` or ``varied``
    (``pipeline/inversion/starts.py``)."""

    learning_rate: float = 0.4
    """Highest learning rate of Adam, above 0, in units of the teacher's normalised space."""

    betas: tuple[float, float] = (0.5, 0.9)
    """Decay rates of Adam's two running means, each in [0, 1)."""

    warmup: int = 10
    """Iterations in which the learning rate rises linearly. At least 0, and limited to half of the
    iterations. Images of half size (``coarse``) and of full size each have their own warm-up."""

    schedule: Schedule = "cosine"
    """Learning rate after the warm-up: ``constant``, or ``cosine`` down to 0."""

    jitter: int = 2
    """Largest random shift of the batch in each iteration, in pixels. At least 0."""

    flip: bool = True
    """Whether the batch is mirrored left to right in a random half of the iterations."""

    clamp: bool = True
    """Whether each iteration limits the pixels to the values that bytes 0 to 255 stand for."""

    colour: float = 0.0
    """Largest random change of brightness, and of the logarithm of contrast, in normalised units.
    At least 0. Each image and channel has its own change in each iteration."""

    zoom: float = 1.0
    """Smallest side of the random crop that the networks see, as a share of the image's side, in
    (0, 1]. The whole batch has the same crop. 1 switches cropping off."""

    zoom_schedule: Schedule = "constant"
    """Smallest crop over the iterations: ``constant``, or ``cosine`` from whole images at the first
    iteration to ``zoom`` at the last. The latter is the crop curriculum of Yin and Shen 2023,
    "Dataset Distillation in Large Data Era"."""

    coarse: float = 0.0
    """Share of the iterations, at the start, in which images have half the size. In [0, 1]."""


# The published code takes one norm over a batch of 256 images. R_TV and R_l2 here are means of one
# norm for each image, as in the equations. The gradients agree with a weight sqrt(256) times as
# large.
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
# Half the size for a part of the iterations costs less, and students learn as much from the images
# (docs/results/students.md).
_MEDIUM = Objective(coarse=0.3)
# Large images that start from strong noise at a high learning rate stay noisy: the teacher sees the
# class in them and a person does not.
_LARGE = Objective(start="grey", tv=0.06, learning_rate=0.1, jitter=16, coarse=0.6)
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
