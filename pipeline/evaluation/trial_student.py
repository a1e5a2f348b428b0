"""A student that learns from a dataset for a few steps, and what the teacher says of it.

What a dataset is worth is what a student learns from it. Without real images the student is
compared with the teacher on procedural pictures, which neither dataset nor student has seen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.config.schema import Config
from pipeline.device.seeding import seed_all
from pipeline.distillation.step import Training
from pipeline.evaluation.signs import sample_rows
from pipeline.evaluation.verdict import Verdict, judge_images
from pipeline.procedural import procedural_pixels
from pipeline.teachers.networks import build_network
from pipeline.teachers.predict import predict
from pipeline.teachers.teacher import Teacher

MOST_IMAGES = 2048  # that a trial student learns from
SLOW_PIXELS = 128 * 128  # of an image: on a CPU larger ones have no trial student
MOST_PIXELS = 2**23  # of all pictures that are drawn: 8,192 of 32 x 32
PER_CLASS = 100
CHUNK = 250
PLAIN = {"procedural": 0.0, "adversarial": 0.0, "imitation": 0.0, "compile": False}


def verdict_with_trial(config: Config, teacher: Teacher, pixels: Tensor, labels: Tensor) -> Verdict:
    """Judge images by their signs and by what a trial student learns from up to ``MOST_IMAGES``.

    There is no trial student without labels or with one class, with ``evaluation.trial_steps: 0``,
    from fewer images than a step needs, and for large images on a CPU.

    Args:
        config: The parameters.
        teacher: The teacher.
        pixels: Images of the dataset, uint8 ``[N, C, H, W]``.
        labels: ``[N]``.
    """
    _, height, width = teacher.shape
    slow = teacher.device.type == "cpu" and height * width > SLOW_PIXELS
    few = len(labels) < config.distillation.fewest_images
    if slow or few or teacher.classes < 2 or not config.evaluation.trial_steps:
        return judge_images(teacher, pixels, labels)
    taught = trial_agreement(config, teacher, pixels[sample_rows(len(pixels), MOST_IMAGES)])
    return judge_images(teacher, pixels, labels, taught)


def trial_agreement(config: Config, teacher: Teacher, pixels: Tensor) -> float:
    """Train a student on images for ``evaluation.trial_steps``, and compare it with the teacher.

    The student learns as ``distillation`` says, but from the images alone: without procedural
    pictures, adversarial images and imitation. The comparison is on procedural pictures. Each class
    that the teacher gives to some of them counts alike.

    Args:
        config: The parameters: ``student``, ``distillation`` and ``evaluation.trial_steps``.
        teacher: The teacher.
        pixels: Images of the dataset, uint8 ``[N, C, H, W]``, at least 2.

    Returns:
        The share of the pictures to which the student gives the teacher's class, less that of
        chance: ``(a - 1 / K) / (1 - 1 / K)`` for ``K`` classes. It is 1 for equal answers, and
        about 0 for guesses.

    Example::

        trial_agreement(config, teacher, seen.pixels)  # 0.2
    """
    student = plain_student(config, teacher, pixels, config.evaluation.trial_steps, seed=0)
    pictures, classes = _balanced_pictures(teacher)
    answers = predict(student, teacher.preprocessing, pictures, CHUNK).argmax(1)
    right = (answers == classes).double()
    agreement = torch.stack([right[classes == label].mean() for label in classes.unique()]).mean()
    chance = 1 / teacher.classes
    return (agreement.item() - chance) / (1 - chance)


def plain_student(
    config: Config, teacher: Teacher, pixels: Tensor, steps: int, seed: int
) -> nn.Module:
    """Train a student from images in memory alone, with the changes of :data:`PLAIN`.

    Args:
        config: The parameters: ``student`` and ``distillation``.
        teacher: The teacher.
        pixels: Images, uint8 ``[N, C, H, W]``.
        steps: Optimiser steps, at least 1.
        seed: Seed of the first weights, of the order of images and of augmentation.

    Returns:
        The student in eval mode.
    """
    training = config.distillation.model_copy(
        update={**PLAIN, "steps": steps, "warmup": min(config.distillation.warmup, steps // 4)}
    ).for_images(len(pixels))
    seed_all(seed)
    student = build_network(config.student.source, config.student.arguments, "student")
    generator = torch.Generator().manual_seed(seed)
    with Training(teacher, student, training, seed, graphs=False) as trained:
        for number in range(steps):
            rows = torch.randint(len(pixels), (training.batch_size,), generator=generator)
            trained.step(number, pixels[rows])
    return trained.published().eval()


def _balanced_pictures(teacher: Teacher) -> tuple[Tensor, Tensor]:
    """Procedural pictures, at most ``PER_CLASS`` of a class, and the teacher's classes of them."""
    _, height, width = teacher.shape
    count = max(PER_CLASS, MOST_PIXELS // (height * width))
    generator = torch.Generator().manual_seed(0)
    pictures = procedural_pixels(min(count, 2**13), teacher.shape, generator)
    classes = predict(teacher.network, teacher.preprocessing, pictures, CHUNK).argmax(1)
    rows = torch.cat([(classes == label).nonzero()[:PER_CLASS, 0] for label in classes.unique()])
    return pictures[rows], classes[rows]
