"""The accuracy of the teacher and the students on real images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.distillation.job import student_problem
from pipeline.errors import UserError
from pipeline.evaluation.inputs import real_batches, real_data
from pipeline.stages.final_students import STUDENT, warn_of_others, weights_path
from pipeline.storage import exists
from pipeline.teachers.networks import build_network, load_weights
from pipeline.teachers.predict import predict
from pipeline.teachers.teacher import Teacher

BATCH = 256
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """How many images of one class a network takes for another one, or for the right one.

    Attributes:
        model: ``teacher``, or the name of a student such as ``student-0``.
        label: The class of the images.
        predicted: The class that the network gives them.
        images: Their number, above 0.
    """

    model: str
    label: int
    predicted: int
    images: int


def evaluate(config: Config, teacher: Teacher) -> dict[str, Any]:
    """Measure the top-1 accuracy of the teacher and of every student: :func:`evaluate_classes`."""
    return evaluate_classes(config, teacher)[0]


def evaluate_classes(config: Config, teacher: Teacher) -> tuple[dict[str, Any], list[Answer]]:
    """Measure the top-1 accuracy of the teacher and of every student, as fractions.

    Returns:
        The report, and the answers of every network by class. ``student_accuracy`` is the mean over
        the seeds. ``agreement`` is the share of real images to which the first student gives the
        same class as the teacher. Before the first student is trained, the report holds the
        teacher's accuracy alone.

    Raises:
        UserError: No real data is configured, or some students are missing.
    """
    if not teacher.labelled:
        raise UserError(
            "evaluate measures accuracies, and a teacher of teacher.labels: none has no classes: "
            "measure the network with your own metric"
        )
    data = real_data(config)
    students = []
    if any(exists(weights_path(config, STUDENT, seed)) for seed in config.distillation.seeds):
        warn_of_others(config, teacher)
        seeds = config.distillation.seeds
        students = [load_student(config, teacher, STUDENT, seed) for seed in seeds]
    else:
        log.warning(
            "paths.students %s holds no student yet: this is the accuracy of the teacher alone. If "
            "it is lower than expected, check teacher.input.mean and std",
            config.paths.students,
        )
    labels, (teacher_says, *says) = _predictions([teacher.network, *students], teacher, data)
    report: dict[str, Any] = {
        "teacher_accuracy": share(teacher_says, labels),
        "images": len(plan_of(config).labels),
        "classes": config.teacher.classes,
        "real_images": len(labels),
    }
    answers = count_answers("teacher", labels, teacher_says)
    if not students:
        return report, answers
    for seed, classes in zip(config.distillation.seeds, says, strict=True):
        answers += count_answers(f"{STUDENT}-{seed}", labels, classes)
    accuracies = [share(classes, labels) for classes in says]
    report |= {
        "student_accuracy": round(sum(accuracies) / len(accuracies), 6),
        "student_accuracies": dict(
            zip(map(str, config.distillation.seeds), accuracies, strict=True)
        ),
        "agreement": share(says[0], teacher_says),
    }
    for kind in config.distillation.baselines:
        first = config.distillation.seeds[0]
        baseline = load_student(config, teacher, kind, first)
        _, (baseline_says,) = _predictions([baseline], teacher, data)
        report[f"{kind}_baseline_accuracy"] = share(baseline_says, labels)
        answers += count_answers(f"{kind}-{first}", labels, baseline_says)
    return report, answers


def count_answers(model: str, labels: Tensor, classes: Tensor) -> list[Answer]:
    """Count the answers of a network by class.

    Args:
        model: its name in the report.
        labels: the class of each image, ``[N]``.
        classes: the class that the network gives it, ``[N]``.
    """
    pairs, counts = torch.stack([labels, classes], 1).unique(dim=0, return_counts=True)
    return [
        Answer(model, label, predicted, count)
        for (label, predicted), count in zip(pairs.tolist(), counts.tolist(), strict=True)
    ]


def load_student(config: Config, teacher: Teacher, kind: str, seed: int) -> nn.Module:
    """A trained student in eval mode, on the teacher's device.

    Args:
        config: All parameters.
        teacher: The teacher.
        kind: ``STUDENT`` for the student of the dataset, or the name of a baseline.
        seed: One of ``distillation.seeds``.

    Raises:
        UserError: The student is missing, or one of its files was changed.
    """
    path = weights_path(config, kind, seed)
    if not exists(path):
        raise UserError(f"there is no student {path}: run distill first")
    if (problem := student_problem(path)) is not None:
        raise UserError(f"the student {path} is damaged ({problem}): run distill first")
    network = build_network(config.student.source, config.student.arguments, "student")
    load_weights(network, path, "student")
    return network.eval().to(teacher.device)


def _predictions(
    networks: list[nn.Module], teacher: Teacher, data: Path
) -> tuple[Tensor, list[Tensor]]:
    """The labels of the real images, and the classes that each network gives them."""
    all_labels: list[Tensor] = []
    classes: list[list[Tensor]] = [[] for _ in networks]
    for pixels, labels in real_batches(data, "evaluation.data", teacher.shape, BATCH):
        all_labels.append(labels)
        for found, network in zip(classes, networks, strict=True):
            found.append(predict(network, teacher.preprocessing, pixels, BATCH).argmax(1))
    return torch.cat(all_labels), [torch.cat(found) for found in classes]


def share(left: Tensor, right: Tensor) -> float:
    """The fraction of places where two rows of classes are equal."""
    return round((left == right).double().mean().item(), 6)
