"""What a student makes of its dataset, and of images of other parameters."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from pipeline.config.schema import Config
from pipeline.distillation.loss import distillation_loss
from pipeline.evaluation.accuracy import Answer, count_answers, load_student
from pipeline.evaluation.features import BATCH, Seen, look
from pipeline.quantities import six_digits
from pipeline.stages.final_students import STUDENT, warn_of_others, weights_path
from pipeline.storage import exists
from pipeline.teachers.predict import predict
from pipeline.teachers.teacher import Teacher

Answers = list[Answer]
TEMPERATURE = 8.0  # of Eq. 1, the same for all students


def student_measures(
    config: Config, teacher: Teacher, seen: Seen, foreign: Path | None
) -> tuple[dict[str, float], Answers]:
    """Compare the first student with the teacher, on its dataset and on foreign images.

    Args:
        config: the parameters.
        teacher: the teacher.
        seen: the dataset's images, with the teacher's logits.
        foreign: a shard that other parameters made, or None.

    Returns:
        The share of images to which student and teacher give different classes, with the values of
        :func:`on_foreign`; and the answers of both to the dataset's images by class. There is
        nothing of a student that is not trained yet.
    """
    answers = count_answers("teacher", seen.labels, seen.logits.argmax(1))
    seed = config.distillation.seeds[0]
    if not exists(weights_path(config, STUDENT, seed)):
        return {}, answers
    warn_of_others(config, teacher)
    student = load_student(config, teacher, STUDENT, seed)
    classes = predict(student, teacher.preprocessing, seen.pixels, BATCH).argmax(1)
    differs = classes != seen.logits.argmax(1)
    report = {"student_disagreement": six_digits(differs.double().mean().item())}
    if foreign is not None:
        report |= on_foreign(student, teacher, foreign)
    return report, [*answers, *count_answers(f"{STUDENT}-{seed}", seen.labels, classes)]


def on_foreign(student: nn.Module, teacher: Teacher, tar: Path) -> dict[str, float]:
    """Compare a student with its teacher on images that other parameters made.

    The student has not learnt from these images. The loss is Eq. 1 of Yin et al. (2020), the
    divergence of the two outputs, at one temperature for all students.

    Args:
        student: the student, in eval mode.
        teacher: its teacher.
        tar: the images.

    Returns:
        The loss, the share of images to which both give the same class, and the number of images.
    """
    theirs = look(teacher, [tar])
    ours = predict(student, teacher.preprocessing, theirs.pixels, BATCH)
    same = ours.argmax(1) == theirs.logits.argmax(1)
    return {
        "foreign_loss": six_digits(distillation_loss(ours, theirs.logits, TEMPERATURE).item()),
        "foreign_agreement": six_digits(same.double().mean().item()),
        "foreign_images": len(same),
    }
