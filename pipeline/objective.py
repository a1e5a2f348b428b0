"""What an image is optimised for: each term of DeepInversion, and their weighted sum.

Equations and names follow Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via
DeepInversion", CVPR 2020. Images are in the teacher's own (normalised) space throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.statistics import LayerStatistics

FeatureForm = Literal["normalised", "published"]
Start = Literal["white", "low-frequency", "grey", "varied"]
Schedule = Literal["cosine", "constant"]

# Keeps the ratio of variances finite for channels that never fire.
VARIANCE_FLOOR = 1e-5


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


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``L = -log p_T(y | x)``, the cross-entropy of each image. ``[B, K], [B] -> [B]``.

    ``labels`` may be probabilities, ``[B, K]``: ``L = -sum_k q_k log p_T(k | x)``.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


def ambiguous_targets(
    labels: Tensor, classes: int, ambiguity: float, generator: torch.Generator
) -> Tensor:
    """Probabilities ``[B, K]``: of each image one other class, at random, has a share that is
    uniform in [0, ``ambiguity``], and its label (int64 ``[B]``, on the CPU) the rest."""
    other = (
        labels + torch.randint(1, max(2, classes), labels.shape, generator=generator)
    ) % classes
    share = ambiguity * torch.rand(len(labels), 1, generator=generator)
    targets = F.one_hot(labels, classes) * (1 - share)
    return targets + F.one_hot(other, classes) * share


def total_variation(images: Tensor) -> Tensor:
    """``R_TV(x) = sum_d ||x - shift_d(x)||_2`` over the directions ->, v, and both diagonals.

    ``[B, C, H, W] -> [B]``, each norm taken over the channels and pixels of one image.
    """
    differences = (
        images[..., :, 1:] - images[..., :, :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
    return torch.stack([_norm(difference) for difference in differences]).sum(0)


def l2_norm(images: Tensor) -> Tensor:
    """``R_l2(x) = ||x||_2`` of each image. ``[B, C, H, W] -> [B]``."""
    return _norm(images)


def feature_loss(layers: Sequence[LayerStatistics], form: FeatureForm) -> Tensor:
    """``R_feature``: how far a batch's BatchNorm statistics are from the teacher's. Scalar.

    ``published`` is the paper's,
    ``sum_l ||mu_l(x) - running_mean_l||_2 + ||sigma2_l(x) - running_var_l||_2``.

    ``normalised`` has no scale to tune: with ``v = running_var``, the mean over layers of the mean
    over channels of ``(mu - running_mean)^2 / v + (log sigma2 - log v)^2``.
    """
    if not layers:
        raise ValueError("no BatchNorm layer ran: R_feature needs at least one")
    if form == "published":
        return torch.stack(
            [
                torch.linalg.vector_norm(layer.mean - layer.running_mean)
                + torch.linalg.vector_norm(layer.variance - layer.running_variance)
                for layer in layers
            ]
        ).sum()
    return torch.stack([_normalised_error(layer) for layer in layers]).mean()


def jensen_shannon(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """``JS(p_T, p_S) = (KL(p_T || M) + KL(p_S || M)) / 2``, ``M = (p_T + p_S) / 2``, in [0, ln 2].

    ``[B, K], [B, K] -> [B]``.
    """
    log_t = teacher_logits.float().log_softmax(1)
    log_s = student_logits.float().log_softmax(1)
    log_m = torch.logaddexp(log_t, log_s) - torch.log(torch.tensor(2.0, device=log_t.device))
    kl_t = (log_t.exp() * (log_t - log_m)).sum(1)
    kl_s = (log_s.exp() * (log_s - log_m)).sum(1)
    return (kl_t + kl_s) / 2


def compete_loss(teacher_logits: Tensor, student_logits: Tensor, masked: bool = False) -> Tensor:
    """``R_compete = 1 - JS(p_T, p_S)`` (Eq. 8): low where student and teacher disagree.

    ``[B, K], [B, K] -> [B]``. ``masked`` images, of which the student gives another class than the
    teacher already, count 0: they stay just beyond the student's boundary (Fang et al. 2021,
    "Contrastive Model Inversion for Data-Free Knowledge Distillation").
    """
    agreement = 1 - jensen_shannon(teacher_logits, student_logits)
    if not masked:
        return agreement
    return agreement * (teacher_logits.argmax(1) == student_logits.argmax(1))


def draw_factors(objective: Objective, count: int, generator: torch.Generator) -> Tensor:
    """What multiplies each image's weights of L and R_TV, ``[count, 2]``."""
    spreads = torch.tensor([objective.classification_spread, objective.tv_spread])
    factors: Tensor = (spreads * (2 * torch.rand(count, 2, generator=generator) - 1)).exp()
    return factors


@dataclass(frozen=True, slots=True)
class Terms:
    """Unweighted terms of a batch: ``[B]`` each, but ``feature``, the batch's, a scalar.

    ``factors`` ``[B, 2]`` multiply each image's weights of ``classification`` and ``tv``.
    """

    classification: Tensor
    tv: Tensor
    l2: Tensor
    feature: Tensor
    compete: Tensor | None
    factors: Tensor

    def total(self, objective: Objective) -> Tensor:
        """The weighted sum of each image, ``[B]``; its mean is what is minimised."""
        classification, tv = self.factors.unbind(1)
        parts = (
            (objective.classification, classification * self.classification),
            (objective.tv, tv * self.tv),
            (objective.l2, self.l2),
            (objective.feature, self.feature),
            (objective.compete, self.compete),
        )
        total = torch.zeros_like(self.classification)
        for weight, term in parts:
            # A term that does not count must not spread its NaN either.
            if weight and term is not None:
                total = total + weight * term
        return total

    def unweighted(self) -> list[Tensor]:
        """The terms in the order of the fields, without ``compete`` where there is none."""
        terms = [self.classification, self.tv, self.l2, self.feature]
        return terms if self.compete is None else [*terms, self.compete]


def evaluate_terms(
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    layers: Sequence[LayerStatistics],
    student_logits: Tensor | None,
    objective: Objective,
    factors: Tensor,
) -> Terms:
    """All terms of one batch. ``layers`` may be empty (no BatchNorm): ``feature`` is then 0."""
    compete = None
    if student_logits is not None:
        compete = compete_loss(logits, student_logits, objective.masked)
    return Terms(
        classification=classification_loss(logits, labels),
        tv=total_variation(images),
        l2=l2_norm(images),
        feature=feature_loss(layers, objective.feature_form) if layers else images.new_zeros(()),
        compete=compete,
        factors=factors,
    )


def _norm(values: Tensor) -> Tensor:
    """``[B, C, H, W] -> [B]``. Row by row: one sum over a whole image compiles to a slow loop."""
    square = values.float().square().sum((1, 3)).sum(1)
    # The floor keeps the gradient of a norm finite where an image is constant.
    return square.clamp_min(1e-12).sqrt()


def _normalised_error(layer: LayerStatistics) -> Tensor:
    variance = layer.running_variance + VARIANCE_FLOOR
    mean_error = (layer.mean - layer.running_mean).square() / variance
    variance_error = (torch.log(layer.variance + VARIANCE_FLOOR) - torch.log(variance)).square()
    return (mean_error + variance_error).mean()
