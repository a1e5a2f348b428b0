"""Check everything that can be wrong before the first gradient step."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pipeline.config.distillation import DistillationConfig
from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.device.threads import one_thread
from pipeline.distillation.feature_maps import FeatureMaps, Imitation
from pipeline.errors import UserError, first_line
from pipeline.storage import check_writable, location
from pipeline.synthesis.outputs import check_claim
from pipeline.teachers.batchnorm_check import check_soundness
from pipeline.teachers.fixed_function import check_fixed_function, check_weights_exist
from pipeline.teachers.networks import build_network
from pipeline.teachers.registry import find_source
from pipeline.teachers.teacher import Teacher, check_classes, load_teacher, preprocessing


@one_thread()
def load_checked_teacher(config: Config, *outputs: str) -> Teacher:
    """Load the teacher and check everything that can be wrong before the first gradient step.

    Call this once a process and hand the teacher on to the stages.

    Args:
        config: The parameters.
        outputs: Fields of ``paths`` that must be writable, such as ``"dataset"``.

    Returns:
        The teacher, on the CPU.

    Raises:
        UserError: The teacher, the student of the adaptive rounds or a path cannot be used.
    """
    teacher = load_teacher(config.teacher, torch.device("cpu"))
    if config.objective.feature > 0:
        source, _ = find_source(config.teacher.source)
        random = config.teacher.weights is None and source.random_without_weights
        check_soundness(teacher, random)
    if config.adaptive.rounds:
        check_student(config, teacher, "adaptive.training", config.adaptive.training)
        first = sum(end - start for round_, start, end in plan_of(config).bounds if round_ == 0)
        least = config.adaptive.training.fewest_images
        if first < least:
            raise UserError(
                f"adaptive.training needs {least} images, but the first round has {first}: set "
                "synthesis.images to more"
            )
    check_outputs(config, *outputs)
    return teacher


def check_outputs(config: Config, *outputs: str) -> None:
    """Check that the folders of ``paths`` may and can be written.

    Raises:
        UserError: A folder holds other files, or nothing can be written there.
    """
    for name in outputs:
        root = location(getattr(config.paths, name))
        check_claim(root, name)
        check_writable(root, f"paths.{name}")


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
            weights to train, is no fixed function of one image in eval mode, or lacks the feature
            maps that ``training.imitation`` needs.
    """
    network = build_network(config.student.source, config.student.arguments, "student")
    check_weights_exist(network, "student")
    normalise = preprocessing(config.teacher).normalise
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
