"""Check everything that can be wrong before the first gradient step."""

from __future__ import annotations

import torch

from pipeline.config.schema import Config
from pipeline.dataset.odd_files import refuse_linked_folders
from pipeline.dataset.plan import plan_of
from pipeline.device.threads import one_thread
from pipeline.errors import UserError
from pipeline.storage import location
from pipeline.synthesis.outputs import check_claim, check_writable
from pipeline.synthesis.student_check import check_student
from pipeline.teachers.batchnorm_check import check_soundness
from pipeline.teachers.registry import find_source
from pipeline.teachers.teacher import Teacher, load_teacher


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
    if not teacher.labelled and not config.objective.feature:
        raise UserError(
            "synthesis.objective.feature is 0, and teacher.labels is none: nothing would say what "
            "the images show. Leave feature out, and set the preset to auto"
        )
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
        UserError: A folder holds other files, nothing can be written there, or a folder of the
            dataset is a link.
    """
    for name in outputs:
        root = location(getattr(config.paths, name))
        if name == "dataset":
            refuse_linked_folders(root)
        check_claim(root, name)
        check_writable(root, f"paths.{name}")
