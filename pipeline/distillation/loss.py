"""The loss of distillation, eager or compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.device.compiling import compile_function
from pipeline.distillation.feature_maps import Imitation


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute Eq. 1 of DeepInversion (Yin et al. 2020), the loss of knowledge distillation.

    ``T^2 KL(softmax(t / T) || softmax(s / T))``, mean over the batch, where ``t`` and ``s`` are the
    logits of teacher and student and ``T`` is the temperature. The factor ``T^2`` keeps the size of
    the gradient the same for all temperatures (Hinton et al. 2015, "Distilling the Knowledge in a
    Neural Network").

    Args:
        student_logits: ``[B, K]``, of any floating-point type.
        teacher_logits: ``[B, K]``, of any floating-point type.
        temperature: ``T``, above 0.

    Returns:
        A float32 scalar, 0 or more.

    Example::

        loss = distillation_loss(student(images), teacher(images), temperature=50.0)
        loss.backward()
    """
    log_student = F.log_softmax(student_logits.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def compare(
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor,
    temperature: float,
    imitation: Imitation | None,
    weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run both networks on the same images and compute the training loss.

    Args:
        teacher: The frozen teacher.
        student: The student.
        images: Normalised images ``[B, C, H, W]``. The teacher is differentiated too where they
            require a gradient.
        temperature: ``T`` of :func:`distillation_loss`.
        imitation: The term for feature maps, or None.
        weight: Weight of that term.

    Returns:
        The loss (a scalar), the student's logits ``[B, K]`` and the teacher's logits ``[B, K]``.
    """
    with torch.set_grad_enabled(images.requires_grad):
        target = teacher(images)
    logits = student(images)
    loss = distillation_loss(logits, target, temperature)
    if imitation is not None:
        loss = loss + weight * imitation()
    return loss, logits, target


@functools.cache
def compiled_compare() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return :func:`compare`, compiled. All students share one function and compile once."""
    return compile_function(compare)
