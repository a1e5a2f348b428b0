"""Check everything that can be wrong before the first gradient step."""

from __future__ import annotations

import torch

from pipeline.config.distillation import DistillationConfig
from pipeline.config.schema import Config
from pipeline.dataset.odd_files import refuse_linked_folders
from pipeline.dataset.plan import plan_of
from pipeline.device.threads import one_thread
from pipeline.distillation.feature_maps import FeatureMaps, Imitation
from pipeline.errors import UserError
from pipeline.storage import check_writable, location
from pipeline.teachers.batchnorm_check import check_soundness
from pipeline.teachers.networks import build_network
from pipeline.teachers.registry import find_source
from pipeline.teachers.teacher import Teacher, check_classes, load_teacher


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
        batch = config.adaptive.training.batch_size
        first = sum(end - start for round_, start, end in plan_of(config).bounds if round_ == 0)
        if batch > first:
            raise UserError(
                f"adaptive.training.batch_size is {batch}, but the first round has {first} images"
            )
    check_outputs(config, *outputs)
    return teacher


def check_outputs(config: Config, *outputs: str) -> None:
    """Check that fields of ``paths`` are writable.

    Raises:
        UserError: One of them is not, or a folder of the dataset is a link.
    """
    for name in outputs:
        if name == "dataset":
            refuse_linked_folders(location(config.paths.dataset))
        check_writable(location(getattr(config.paths, name)), f"paths.{name}")


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
        UserError: The student cannot be built, has another input or number of classes, or lacks
            the feature maps that ``training.imitation`` needs.
    """
    network = build_network(config.student.source, config.student.arguments, "student")
    check_classes(network.eval(), teacher.shape, teacher.classes, "student")
    check_classes(network.train(), teacher.shape, teacher.classes, "student in training mode")
    if training.imitation:
        images = torch.zeros(2, *teacher.shape)
        try:
            Imitation(FeatureMaps(teacher.network, images), FeatureMaps(network, images))
        except UserError as error:
            raise UserError(f"{section}.imitation must be 0: {error}") from error
