"""Check what can be wrong with the final students before their training."""

from __future__ import annotations

import logging

from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.distillation.augmentation import GROUP
from pipeline.errors import UserError
from pipeline.execution.torchrun import own_share
from pipeline.synthesis.check import check_outputs
from pipeline.synthesis.student_check import check_student
from pipeline.teachers.teacher import Teacher
from pipeline.tracking.loggers import check_logger

log = logging.getLogger(__name__)


def check_distillation(config: Config, teacher: Teacher) -> None:
    """Check what can be wrong with the training, even before there is a dataset.

    Raises:
        UserError: The teacher has no logits, the student does not fit, a path is not writable, the
            dataset has fewer images than a step needs, or the processes of torchrun cannot share a
            batch.
    """
    if not teacher.labelled:
        raise UserError(
            "distill trains students on the teacher's logits, and teacher.labels is none: name a "
            "classifier with labels: class, or use the images with your own loss"
        )
    check_logger(config)
    check_student(config, teacher, "distillation", config.distillation)
    check_outputs(config, "students", "reports")
    images, training = len(plan_of(config).labels), config.distillation
    if images < training.fewest_images:
        raise UserError(
            f"distillation needs {training.fewest_images} images, but the dataset has {images}: "
            "set synthesis.images to more"
        )
    batch = training.for_images(images).batch_size
    if batch < training.batch_size:
        log.warning(
            "distillation.batch_size is %d, but the dataset has %d images: each step takes all %d",
            training.batch_size,
            images,
            batch,
        )
    processes = own_share().of
    if processes > 1 and batch % (GROUP * processes):
        raise UserError(
            f"distillation.batch_size is {batch}, which {processes} processes cannot share: "
            f"make it a multiple of {GROUP * processes} (images mix in groups of {GROUP})"
        )
