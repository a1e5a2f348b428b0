"""Measures of a dataset: its variety, its repeats, and what teacher and student make of it.

They need no real image. Where real ones are configured, the likeness to them is measured too.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.distillation.loss import distillation_loss
from pipeline.errors import UserError
from pipeline.evaluation.accuracy import load_student
from pipeline.evaluation.features import BATCH, MergedStatistics, Seen, look
from pipeline.evaluation.inputs import foreign_images, load_verifier, real_data
from pipeline.evaluation.similarity import (
    NEIGHBOURS,
    frechet_distance,
    likeness,
    mean_cosine,
    nearest,
    vendi_score,
)
from pipeline.inversion.fingerprints import centred
from pipeline.stages.distill import STUDENT, warn_of_others, weights_path
from pipeline.storage import Location, exists
from pipeline.teachers.predict import predict
from pipeline.teachers.teacher import Teacher

MOST_IMAGES = 20_000  # to look at; of a larger dataset, evenly spaced shards
DUPLICATE = 0.95  # cosine of two images' centred pixels
TEMPERATURE = 8.0  # of Eq. 1 on foreign images, the same for all students


def measure(config: Config, teacher: Teacher) -> tuple[dict[str, Any], Tensor]:
    """Compute all measures of the dataset.

    Returns:
        The report, and the most similar pairs of images, uint8 ``[P, 2, C, H, W]``.

    Raises:
        UserError: a shard is missing, or ``evaluation.data``, ``evaluation.foreign`` or
            ``evaluation.verifier`` cannot be used.
    """
    shards = _shards(config)
    foreign = foreign_images(config)
    statistics = MergedStatistics()
    seen = look(teacher, shards, statistics)
    values, partners = nearest(centred(seen.pixels))
    same = seen.labels == seen.labels[partners]
    report: dict[str, Any] = {
        "images": len(seen.labels),
        **_spread(seen),
        "near_duplicates": _round((values > DUPLICATE).double().mean().item()),
        "nearest_is_of_the_same_class": _round(same.double().mean().item()),
        **_certainty(seen),
    }
    if (gap := statistics.gap()) is not None:
        report["statistics_gap"] = _round(gap)
    seed = config.distillation.seeds[0]
    if exists(weights_path(config, STUDENT, seed)):
        warn_of_others(config, teacher)
        student = load_student(config, teacher, STUDENT, seed)
        answers = predict(student, teacher.preprocessing, seen.pixels, BATCH)
        differs = answers.argmax(1) != seen.logits.argmax(1)
        report["student_disagreement"] = _round(differs.double().mean().item())
        if foreign is not None:
            report |= on_foreign(student, teacher, foreign)
    if config.evaluation.verifier is not None:
        report |= _verified(config, teacher, seen)
    order = values.argsort(descending=True)[:40:2]  # each pair occurs twice
    return report, torch.stack([seen.pixels[order], seen.pixels[partners[order]]], 1)


def _shards(config: Config) -> tuple[Location, ...]:
    """The shards to look at: all, or evenly spaced ones of a large dataset."""
    dataset = Dataset.planned(config)
    paths = dataset.paths.tars[:: -(-len(dataset) // MOST_IMAGES)]
    for path in paths:
        if not exists(path):
            raise UserError(f"there is no shard {path}: run synthesize first")
    return paths


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
        "foreign_loss": _round(distillation_loss(ours, theirs.logits, TEMPERATURE).item()),
        "foreign_agreement": _round(same.double().mean().item()),
        "foreign_images": len(same),
    }


def _spread(seen: Seen) -> dict[str, float]:
    """The mean cosine and the effective number of images in 100, within a class.

    Both are means over the classes.
    """
    cosines, scores = [], []
    for label in seen.labels.unique():
        rows = seen.features[seen.labels == label]
        if len(rows) > 1:
            cosines.append(mean_cosine(rows))
            scores.append(vendi_score(rows[:100]) / min(100, len(rows)) * 100)
    if not cosines:
        return {}
    count = len(cosines)
    return {
        "class_cosine": _round(sum(cosines) / count),
        "class_vendi_per_100": _round(sum(scores) / count),
    }


def _certainty(seen: Seen) -> dict[str, float]:
    """The teacher's mean entropy in nats, mean margin and agreement with the labels.

    The margin is the distance of the two highest probabilities.
    """
    probabilities = seen.logits.double().softmax(1)
    highest = probabilities.topk(min(2, probabilities.shape[1]), dim=1).values
    margin = highest[:, 0] - highest[:, 1] if highest.shape[1] > 1 else highest[:, 0]
    confirmed = seen.logits.argmax(1) == seen.labels
    return {
        "teacher_entropy": _round(torch.special.entr(probabilities).sum(1).mean().item()),
        "teacher_margin": _round(margin.mean().item()),
        "teacher_agreement": _round(confirmed.double().mean().item()),
    }


def _verified(config: Config, teacher: Teacher, seen: Seen) -> dict[str, Any]:
    """The verifier's agreement with the labels, and by its features the likeness to real images."""
    assert config.evaluation.verifier is not None
    verifier = load_verifier(config.evaluation.verifier, teacher.device)
    made = look(verifier, _shards(config))
    report: dict[str, Any] = {
        "verifier_agreement": _round((made.logits.argmax(1) == made.labels).double().mean().item())
    }
    if config.evaluation.data is None:
        return report
    real = look(verifier, [real_data(config)])
    if min(len(made.labels), len(real.labels)) <= NEIGHBOURS:
        raise UserError(
            f"likeness to real images needs more than {NEIGHBOURS} synthetic and as many real ones"
        )
    report["frechet_distance"] = _round(frechet_distance(made.features, real.features))
    report |= {k: _round(v) for k, v in asdict(likeness(real.features, made.features)).items()}
    return report


def _round(value: float) -> float:
    return float(f"{value:.6g}")
