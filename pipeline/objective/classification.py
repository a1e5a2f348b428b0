"""The classification term L: the teacher must see the intended class in each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each image: ``L = -log p_T(y | x)``.

    With soft targets ``q`` it is ``L = -sum_k q_k log p_T(k | x)``. The source is Eq. 2 of Yin et
    al. 2020, "Dreaming to Distill". ``p_T`` is the softmax of the teacher's logits.

    Args:
        logits: The teacher's logits, ``[B, K]``. They are computed on in float32.
        labels: Classes, int64 ``[B]``, or probabilities, float32 ``[B, K]``.

    Returns:
        The loss of each image in nats, ``[B]``, at least 0.

    Example:
        >>> classification_loss(torch.zeros(1, 4), torch.tensor([2]))  # log 4
        tensor([1.3863])
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


def ambiguous_targets(
    labels: Tensor, classes: int, ambiguity: float, generator: torch.Generator
) -> Tensor:
    """Draw soft targets that give a part of each image's probability to one other class.

    ``q = (1 - a) onehot(y) + a onehot(other)``, where ``a`` is uniform in ``[0, ambiguity]`` and
    ``other`` is a class other than ``y`` with equal chances.

    Args:
        labels: Classes, int64 ``[B]``, on the CPU.
        classes: The number of classes, K.
        ambiguity: The largest probability of the other class, in [0, 1].
        generator: The source of the random draws, on the CPU.

    Returns:
        Probabilities, float32 ``[B, K]``. Each row sums to 1.
    """
    other = (
        labels + torch.randint(1, max(2, classes), labels.shape, generator=generator)
    ) % classes
    share = ambiguity * torch.rand(len(labels), 1, generator=generator)
    targets = F.one_hot(labels, classes) * (1 - share)
    return targets + F.one_hot(other, classes) * share
