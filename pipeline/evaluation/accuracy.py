"""How good teacher and students are on real images, which nothing before this stage has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.distillation.job import student_problem
from pipeline.errors import UserError
from pipeline.evaluation.inputs import real_batches, real_data
from pipeline.stages.distill import NOISE, STUDENT, warn_of_others, weights_path
from pipeline.storage import exists
from pipeline.teachers.networks import build_network, load_weights
from pipeline.teachers.teacher import Teacher

BATCH = 256


def evaluate(config: Config, teacher: Teacher) -> dict[str, Any]:
    """Top-1 accuracies as fractions; ``student_accuracy`` is the mean over the seeds.

    ``agreement`` is the share of real images that the first student labels as the teacher does.

    Raises:
        UserError: no real data is configured, or a student is not there.
    """
    data = real_data(config)
    warn_of_others(config, teacher)
    students = [load_student(config, teacher, STUDENT, seed) for seed in config.distillation.seeds]
    predicted = _predictions([teacher.network, *students], teacher, data)
    labels, (teacher_says, *students_say) = predicted
    accuracies = [share(says, labels) for says in students_say]
    report: dict[str, Any] = {
        "teacher_accuracy": share(teacher_says, labels),
        "student_accuracy": round(sum(accuracies) / len(accuracies), 6),
        "student_accuracies": dict(
            zip(map(str, config.distillation.seeds), accuracies, strict=True)
        ),
        "agreement": share(students_say[0], teacher_says),
        "images": len(plan_of(config).labels),
        "classes": config.teacher.classes,
        "real_images": len(labels),
    }
    if config.distillation.noise_baseline:
        noise = load_student(config, teacher, NOISE, config.distillation.seeds[0])
        _, (noise_says,) = _predictions([noise], teacher, data)
        report["noise_baseline_accuracy"] = share(noise_says, labels)
    return report


def load_student(config: Config, teacher: Teacher, kind: str, seed: int) -> nn.Module:
    """A trained student in eval mode, on the teacher's device.

    Raises:
        UserError: it is not there, or not whole.
    """
    path = weights_path(config, kind, seed)
    if not exists(path):
        raise UserError(f"there is no student {path}: run distill first")
    if (problem := student_problem(path)) is not None:
        raise UserError(f"the student {path} is not whole, {problem}: run distill first")
    network = build_network(config.student.source, config.student.arguments, "student")
    load_weights(network, path, "student")
    return network.eval().to(teacher.device)


def _predictions(
    networks: list[nn.Module], teacher: Teacher, data: Path
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    all_labels, answers = [], [[] for _ in networks]  # type: ignore[var-annotated]
    for pixels, labels in real_batches(data, "evaluation.data", teacher.shape, BATCH):
        all_labels.append(labels)
        images = teacher.preprocessing.normalise(pixels.to(teacher.device))
        with torch.no_grad():
            for answer, network in zip(answers, networks, strict=True):
                answer.append(network(images).argmax(1).cpu())
    return torch.cat(all_labels), [torch.cat(answer) for answer in answers]


def share(left: torch.Tensor, right: torch.Tensor) -> float:
    """How often two rows of classes are equal, a fraction."""
    return round((left == right).double().mean().item(), 6)
