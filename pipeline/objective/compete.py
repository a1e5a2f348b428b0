"""The competing term R_compete: in adaptive rounds teacher and student must disagree."""

from __future__ import annotations

import torch
from torch import Tensor


def jensen_shannon(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """The Jensen-Shannon divergence between the outputs of teacher and student.

    ``JS(p_T, p_S) = (KL(p_T || M) + KL(p_S || M)) / 2`` with ``M = (p_T + p_S) / 2``. ``p_T`` and
    ``p_S`` are the softmax of the logits. The source is Eq. 8 of Yin et al. 2020, "Dreaming to
    Distill".

    Args:
        teacher_logits: ``[B, K]``. Computed on in float32.
        student_logits: ``[B, K]``. Computed on in float32.

    Returns:
        The divergence of each image in nats, ``[B]``, in [0, ln 2]. It is 0 where both agree.

    Example:
        >>> jensen_shannon(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]]))  # ln 2
        tensor([0.6931])
    """
    log_t = teacher_logits.float().log_softmax(1)
    log_s = student_logits.float().log_softmax(1)
    log_m = torch.logaddexp(log_t, log_s) - torch.log(torch.tensor(2.0, device=log_t.device))
    kl_t = (log_t.exp() * (log_t - log_m)).sum(1)
    kl_s = (log_s.exp() * (log_s - log_m)).sum(1)
    return (kl_t + kl_s) / 2


def compete_loss(
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor,
    masked: bool = False,
    temperature: float = 1.0,
    confident: float = 0.0,
) -> Tensor:
    """The competing loss of each image: ``R_compete = 1 - JS(p_T, p_S)``.

    It is low where student and teacher disagree. The source is Eq. 8 of Yin et al. 2020, "Dreaming
    to Distill". That equation has no temperature.

    Args:
        teacher_logits: ``[B, K]``.
        student_logits: ``[B, K]``.
        labels: Classes, int64 ``[B]``, or probabilities, float32 ``[B, K]``.
        masked: Whether the loss is 0 for images to which the student already gives another class
            than the teacher. Such images stay just beyond the student's decision boundary (Fang et
            al. 2021, "Contrastive Model Inversion for Data-Free Knowledge Distillation").
        temperature: Divides both logits, above 0.
        confident: The loss is 1, which has no gradient, for images whose class the teacher gives a
            lower probability, in [0, 1]. So an image becomes a member of its class first.

    Returns:
        The loss of each image, ``[B]``, in [1 - ln 2, 1], or 0 where ``masked`` applies.

    Example:
        >>> compete_loss(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([0]))  # they agree
        tensor([1.])
    """
    agreement = 1 - jensen_shannon(teacher_logits / temperature, student_logits / temperature)
    if confident > 0:
        classes = (labels if labels.ndim == 1 else labels.argmax(1))[:, None]
        sure = teacher_logits.float().softmax(1).gather(1, classes)[:, 0]
        agreement = torch.where(sure >= confident, agreement, torch.ones_like(agreement))
    if not masked:
        return agreement
    return agreement * (teacher_logits.argmax(1) == student_logits.argmax(1))
