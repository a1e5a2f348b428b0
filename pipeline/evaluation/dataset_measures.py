"""How varied a dataset is and what it lacks, judged without any real image; and, where real ones
are configured for evaluation, how like them it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.dataset.stream import ordered_batches
from pipeline.distillation.loss import distillation_loss
from pipeline.errors import UserError
from pipeline.evaluation.accuracy import load_student
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
from pipeline.objective.bn_statistics import FeatureStatistics, LayerStatistics
from pipeline.objective.feature import feature_loss
from pipeline.stages.distill import STUDENT, warn_of_others, weights_path
from pipeline.storage import Location, exists, location
from pipeline.teachers.teacher import Teacher

BATCH = 250
MOST_IMAGES = 20_000  # that are looked at, whole shards evenly spaced
DUPLICATE = 0.95  # cosine of two images' centred pixels
TEMPERATURE = 8.0  # of Eq. 1 on foreign images, whatever a student learnt at


@dataclass(frozen=True, slots=True)
class Seen:
    """What one network makes of a set of images; the rows belong together."""

    pixels: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # [N]
    logits: Tensor  # [N, K]
    features: Tensor  # [N, D], what goes into its last linear layer


def measure(config: Config, teacher: Teacher) -> tuple[dict[str, Any], Tensor]:
    """All measures of the dataset, and the most alike pairs, uint8 ``[P, 2, C, H, W]``.

    Raises:
        UserError: there is no dataset, or the evaluation's data, foreign or verifier cannot be
            used.
    """
    shards = _shards(config)
    foreign = foreign_images(config)
    statistics = _Statistics()
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
        answers = _answers(student, teacher, seen.pixels)
        differs = answers.argmax(1) != seen.logits.argmax(1)
        report["student_disagreement"] = _round(differs.double().mean().item())
        if foreign is not None:
            report |= on_foreign(student, teacher, foreign)
    if config.evaluation.verifier is not None:
        report |= _verified(config, teacher, seen)
    order = values.argsort(descending=True)[:40:2]  # a pair comes twice
    return report, torch.stack([seen.pixels[order], seen.pixels[partners[order]]], 1)


def look(
    teacher: Teacher, shards: Sequence[Location], statistics: _Statistics | None = None
) -> Seen:
    """Pass the images of ``shards`` through a network, in order."""
    pixels, labels, logits, features = [], [], [], []
    with FeatureStatistics(teacher.network) as layers, _LastInput(teacher.network) as last:
        for batch, targets in ordered_batches(shards, BATCH):
            _check_shape(teacher, batch)
            with torch.no_grad():
                answer = teacher.network(teacher.preprocessing.normalise(batch.to(teacher.device)))
            if statistics is not None:
                statistics.add(layers.collect(), len(batch))
            layers.collect()
            pixels.append(batch)
            labels.append(targets)
            logits.append(answer.float().cpu())
            features.append(last.take(answer).float().cpu())
    if not labels:
        raise UserError(f"{shards[0]} holds no image")
    return Seen(torch.cat(pixels), torch.cat(labels), torch.cat(logits), torch.cat(features))


def _shards(config: Config) -> list[Location]:
    layout, root = plan_of(config), location(config.paths.dataset)
    step = max(1, -(-len(layout.labels) // MOST_IMAGES))
    paths = [root / "train" / f"{n:06d}.tar" for n in range(0, len(layout), step)]
    for path in paths:
        if not exists(path):
            raise UserError(f"there is no shard {path}: run synthesize first")
    return paths


def on_foreign(student: nn.Module, teacher: Teacher, tar: Path) -> dict[str, float]:
    """Eq. 1 on images of a recipe that a student did not learn from, at one temperature for all
    students; how often it agrees with its teacher there; how many they are."""
    theirs = look(teacher, [tar])
    ours = _answers(student, teacher, theirs.pixels)
    same = ours.argmax(1) == theirs.logits.argmax(1)
    return {
        "foreign_loss": _round(distillation_loss(ours, theirs.logits, TEMPERATURE).item()),
        "foreign_agreement": _round(same.double().mean().item()),
        "foreign_images": len(same),
    }


def _spread(seen: Seen) -> dict[str, float]:
    """Within a class, mean over the classes: cosine, and effective number of images in 100."""
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
    """Of the teacher: entropy in nats, distance of the two highest probabilities, agreement."""
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
    """What an independent network says: agreement with the labels; likeness to real images."""
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
        raise UserError(f"likeness to real images needs more than {NEIGHBOURS} of each")
    report["frechet_distance"] = _round(frechet_distance(made.features, real.features))
    report |= {k: _round(v) for k, v in asdict(likeness(real.features, made.features)).items()}
    return report


def _answers(network: nn.Module, teacher: Teacher, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        parts = [
            network(teacher.preprocessing.normalise(part.to(teacher.device))).float().cpu()
            for part in pixels.split(BATCH)
        ]
    return torch.cat(parts)


def _check_shape(teacher: Teacher, pixels: Tensor) -> None:
    if tuple(pixels.shape[1:]) != teacher.shape:
        raise UserError(
            f"images are {tuple(pixels.shape[1:])}, but the network takes {teacher.shape}"
        )


def _round(value: float) -> float:
    return float(f"{value:.6g}")


class _Statistics:
    """BatchNorm statistics of many batches, merged as if they were one."""

    def __init__(self) -> None:
        self._count = 0
        self._layers: list[tuple[Tensor, Tensor, LayerStatistics]] = []

    def add(self, layers: list[LayerStatistics], count: int) -> None:
        """Weighted sums of the mean and of the mean square of each layer."""
        sums = [(x.mean.double(), x.variance.double() + x.mean.double().square()) for x in layers]
        old = self._layers or [(torch.zeros(()), torch.zeros(()), layer) for layer in layers]
        self._layers = [
            (first + count * mean, second + count * square, layer)
            for (first, second, _), (mean, square), layer in zip(old, sums, layers, strict=True)
        ]
        self._count += count

    def gap(self) -> float | None:
        """``R_feature``, normalised, of the whole set; None for a network without BatchNorm."""
        if not self._layers:
            return None
        merged = []
        for first, second, layer in self._layers:
            mean = first / self._count
            variance = (second / self._count - mean.square()).clamp_min(0)
            merged.append(
                LayerStatistics(
                    mean.float(), variance.float(), layer.running_mean, layer.running_variance
                )
            )
        return float(feature_loss(merged, "normalised"))


class _LastInput:
    """What goes into the last linear layer of a network; its logits where there is none."""

    def __init__(self, network: nn.Module) -> None:
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        self._layer = linear[-1] if linear else None
        self._seen: Tensor | None = None

    def __enter__(self) -> _LastInput:
        if self._layer is not None:
            self._handle = self._layer.register_forward_pre_hook(self._record)
        return self

    def __exit__(self, *error: object) -> None:
        if self._layer is not None:
            self._handle.remove()

    def take(self, logits: Tensor) -> Tensor:
        seen, self._seen = self._seen, None
        return logits if seen is None else seen.flatten(1)

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0].detach()
