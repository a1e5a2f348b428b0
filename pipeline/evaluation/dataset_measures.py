"""Measures of a dataset: its variety, its repeats, and what teacher and student make of it.

They need no real image. Where real ones are configured, the likeness to them is measured too.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.errors import UserError
from pipeline.evaluation.features import MergedStatistics, Seen, look
from pipeline.evaluation.inputs import foreign_images, load_verifier, real_data
from pipeline.evaluation.similarity import (
    NEIGHBOURS,
    frechet_distance,
    likeness,
    mean_cosine,
    nearest,
    vendi_score,
)
from pipeline.evaluation.student_measures import Answers, student_measures
from pipeline.evaluation.trial_student import verdict_with_trial
from pipeline.inversion.fingerprints import centred
from pipeline.quantities import six_digits
from pipeline.storage import Location, exists
from pipeline.teachers.teacher import Teacher

MOST_IMAGES = 20_000  # to look at; of a larger dataset, evenly spaced shards
DUPLICATE = 0.95  # cosine of two images' centred pixels


def measure(config: Config, teacher: Teacher) -> tuple[dict[str, Any], Tensor, Answers]:
    """Compute all measures of the dataset. Without labels those that need one are left out.

    Returns:
        The report, the most similar pairs of images, uint8 ``[P, 2, C, H, W]``, and the answers of
        the teacher and of the first student to the images by class; none without labels.

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
        **(_spread(seen) if teacher.labelled else {}),
        "near_duplicates": six_digits((values > DUPLICATE).double().mean().item()),
    }
    if teacher.labelled:
        report["nearest_is_of_the_same_class"] = six_digits(same.double().mean().item())
        report |= _certainty(seen)
    if (gap := statistics.gap()) is not None:
        report["statistics_gap"] = six_digits(gap)
    report["verdict"] = verdict_with_trial(config, teacher, seen.pixels, seen.labels).report()
    answers: Answers = []
    if teacher.labelled:
        compared, answers = student_measures(config, teacher, seen, foreign)
        report |= compared
    if config.evaluation.verifier is not None:
        report |= _verified(config, teacher, seen)
    order = values.argsort(descending=True)[:40:2]  # each pair occurs twice
    pairs = torch.stack([seen.pixels[order], seen.pixels[partners[order]]], 1)
    return report, pairs, answers


def _shards(config: Config) -> tuple[Location, ...]:
    """The shards to look at: all, or evenly spaced ones of a large dataset."""
    dataset = Dataset.planned(config)
    paths = dataset.paths.tars[:: -(-len(dataset) // MOST_IMAGES)]
    for path in paths:
        if not exists(path):
            raise UserError(f"there is no shard {path}: run synthesize first")
    return paths


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
        "class_cosine": six_digits(sum(cosines) / count),
        "class_vendi_per_100": six_digits(sum(scores) / count),
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
        "teacher_entropy": six_digits(torch.special.entr(probabilities).sum(1).mean().item()),
        "teacher_margin": six_digits(margin.mean().item()),
        "teacher_agreement": six_digits(confirmed.double().mean().item()),
    }


def _verified(config: Config, teacher: Teacher, seen: Seen) -> dict[str, Any]:
    """The verifier's agreement with the labels, and by its features the likeness to real images."""
    assert config.evaluation.verifier is not None
    verifier = load_verifier(config.evaluation.verifier, teacher.device)
    made = look(verifier, _shards(config))
    report: dict[str, Any] = {
        "verifier_agreement": six_digits(
            (made.logits.argmax(1) == made.labels).double().mean().item()
        )
    }
    if config.evaluation.data is None:
        return report
    real = look(verifier, [real_data(config)])
    if min(len(made.labels), len(real.labels)) <= NEIGHBOURS:
        raise UserError(
            f"likeness to real images needs more than {NEIGHBOURS} synthetic and as many real ones"
        )
    report["frechet_distance"] = six_digits(frechet_distance(made.features, real.features))
    report |= {k: six_digits(v) for k, v in asdict(likeness(real.features, made.features)).items()}
    return report
