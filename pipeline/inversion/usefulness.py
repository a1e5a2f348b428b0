"""How much a student can learn from an image, which decides the candidates that are published."""

from __future__ import annotations

from torch import Tensor

from pipeline.inversion.invert import Inverted
from pipeline.objective.compete import jensen_shannon


def usefulness(images: Inverted) -> Tensor:
    """How much each image can teach, ``[B]``, at least 0. More is better.

    It is the divergence between teacher and student (:func:`jensen_shannon`) if there is a student.
    Otherwise it is the entropy of the teacher's output.
    """
    if images.student_logits is None:
        return entropy(images.logits)
    return jensen_shannon(images.logits, images.student_logits)


def entropy(logits: Tensor) -> Tensor:
    """The entropy of each output: ``-sum_k p_k log p_k`` with ``p`` the softmax of the logits.

    Args:
        logits: ``[B, K]``.

    Returns:
        The entropy in nats, ``[B]``, in [0, ln K].

    Example:
        >>> import torch
        >>> entropy(torch.zeros(1, 4))  # ln 4
        tensor([1.3863])
    """
    log_probability = logits.log_softmax(1)
    return -(log_probability.exp() * log_probability).sum(1)
