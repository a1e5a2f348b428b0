"""Check that a student fits the teacher and its training, before any work."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pipeline.config.distillation import DistillationConfig
from pipeline.config.schema import Config
from pipeline.device.threads import one_thread
from pipeline.distillation.feature_maps import FeatureMaps, Imitation
from pipeline.errors import UserError, first_line
from pipeline.teachers.fixed_function import (
    check_classes,
    check_fixed_function,
    check_weights_exist,
)
from pipeline.teachers.networks import build_network
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher


@one_thread()
def check_student(
    config: Config, teacher: Teacher, section: str, training: DistillationConfig
) -> None:
    """Check that the student fits the teacher and its training.

    Args:
        config: The parameters.
        teacher: The teacher whose input and classes the student must have.
        section: The section of the training, for error messages.
        training: How the student will be trained.

    Raises:
        UserError: The student cannot be built, has another input or number of classes, has no
            weights to train, is not a fixed function of one image in eval mode, or lacks a feature
            maps that ``training.imitation`` needs.
    """
    network = build_network(config.student.source, config.student.arguments, "student")
    check_weights_exist(network, "student")
    normalise = Preprocessing.of(config.teacher.input).normalise
    check_classes(network.eval(), teacher.shape, teacher.classes, "student")
    check_fixed_function(network, teacher.shape, normalise, "student")
    check_classes(network.train(), teacher.shape, teacher.classes, "student in training mode")
    _check_trainable(network, torch.zeros(2, *teacher.shape))
    if training.ema:
        _check_copy(network, section)
    if training.imitation:
        images = torch.zeros(2, *teacher.shape)
        try:
            Imitation(FeatureMaps(teacher.network, images), FeatureMaps(network, images))
        except UserError as error:
            raise UserError(f"{section}.imitation must be 0: {error}") from error


def _check_trainable(network: nn.Module, images: Tensor) -> None:
    """Check that the logits in training mode have a gradient to some weight."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if not weights:
        raise UserError(
            "the student has no weight to train: name a network with parameters whose "
            "requires_grad is True"
        )
    logits = network(images)
    gradients: tuple[Tensor | None, ...] = ()
    if logits.requires_grad:
        gradients = torch.autograd.grad(logits.sum(), weights, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise UserError(
            "the student's logits have no gradient to its weights: remove torch.no_grad() and "
            "detach() from its forward pass"
        )


def _check_copy(network: nn.Module, section: str) -> None:
    """Check that the student can be copied, as the moving average of its weights needs."""
    try:
        copy.deepcopy(network)
    except Exception as error:
        raise UserError(
            f"{section}.ema must be 0: the student cannot be copied ({first_line(error)}). With "
            "torch.nn.utils.parametrizations.weight_norm in place of torch.nn.utils.weight_norm it "
            "can"
        ) from error
