"""The terms of the objective and their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.objective.bn_statistics import LayerStatistics
from pipeline.objective.presets import FeatureForm, Objective

# Keeps the ratio of variances finite for channels that never fire.
VARIANCE_FLOOR = 1e-5


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
