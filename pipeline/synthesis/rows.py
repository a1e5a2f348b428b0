"""The Parquet rows and tar samples of one shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.dataset import plan
from pipeline.dataset.plan import Batch, ShardPlan
from pipeline.dataset.tar import Sample
from pipeline.inversion import selection
from pipeline.inversion.selection import Flaw, Kept
from pipeline.objective.presets import Objective
from pipeline.objective.terms import jensen_shannon
from pipeline.synthesis.job import ShardJob
from pipeline.synthesis.spec import round_objective


def rows_of(
    job: ShardJob, shard: ShardPlan, batches: list[tuple[Batch, Kept]]
) -> Iterator[dict[str, Any]]:
    """The Parquet rows of a shard, in publishing order, without what only the tar tells.

    Args:
        job: the job of the shard.
        shard: its plan.
        batches: the batches that were optimised together, with the images that were kept.
    """
    names = job.config.teacher.class_names
    weights = round_objective(job.config, shard.round)
    index = 0
    for number, (batch, kept) in enumerate(batches):
        columns = _columns(kept, shard.labels[index : index + batch.size], weights)
        for position in range(batch.size):
            label = int(shard.labels[index])
            yield {
                "key": shard.key(index),
                "shard": f"{shard.name}.tar",
                "index": index,
                "cls": label,
                "class_name": names[label] if names else str(label),
                "round": shard.round,
                "batch": number,
                "iterations": job.config.synthesis.iterations,
                "height": kept.images.pixels.shape[2],
                "width": kept.images.pixels.shape[3],
                **{name: values[position] for name, values in columns.items()},
            }
            index += 1


def _columns(kept: Kept, labels: plan.Labels, weights: Objective) -> dict[str, list[Any]]:
    """What the networks and the objective say of each image of a batch."""
    intended = torch.from_numpy(labels.astype(np.int64))
    result = kept.images
    terms, logits, student = result.terms, result.logits, result.student_logits
    columns: dict[str, list[Any]] = {
        "seed": result.seeds.tolist(),
        "attempt": result.attempts.tolist(),
        "replaced": [Flaw(value).word for value in kept.replaced.tolist()],
        "flaw": [Flaw(value).word for value in kept.flaws.tolist()],
        "factor_classification": terms.factors[:, 0].tolist(),
        "factor_tv": terms.factors[:, 1].tolist(),
        "loss_total": terms.total(weights).tolist(),
        "loss_classification": terms.classification.tolist(),
        "loss_tv": terms.tv.tolist(),
        "loss_l2": terms.l2.tolist(),
        "loss_feature": terms.feature.tolist(),
        "teacher_pred": logits.argmax(1).tolist(),
        "teacher_prob": result.confidence(intended).tolist(),
        "teacher_entropy": selection.entropy(logits).tolist(),
    }
    if student is not None:
        assert terms.compete is not None
        columns["loss_compete"] = terms.compete.tolist()
        columns["student_pred"] = student.argmax(1).tolist()
        columns["student_prob"] = student.softmax(1).gather(1, intended[:, None])[:, 0].tolist()
        columns["js_divergence"] = jensen_shannon(logits, student).tolist()
    return columns


def samples_of(
    rows: Sequence[dict[str, Any]], batches: list[tuple[Batch, Kept]], soft_labels: bool
) -> Iterator[Sample]:
    """The tar samples of a shard, in publishing order.

    Args:
        rows: the rows of the shard.
        batches: the batches that the rows describe.
        soft_labels: include the teacher's logits.
    """
    images = (image for _, kept in batches for image in kept.images.pixels.numpy())
    logits = (values for _, kept in batches for values in kept.images.logits.half().numpy())
    for row, pixels, values in zip(rows, images, logits, strict=True):
        facts = {name: row[name] for name in ("cls", "class_name", "round", "teacher_pred")}
        facts["teacher_prob"] = float(f"{row['teacher_prob']:.6g}")
        yield Sample(row["key"], pixels, row["cls"], facts, values if soft_labels else None)


def class_counts(shard: ShardPlan) -> dict[str, int]:
    """The number of images of each class."""
    labels, counts = np.unique(shard.labels, return_counts=True)
    return {str(label): int(count) for label, count in zip(labels, counts, strict=True)}


def mean_curve(batches: list[tuple[Batch, Kept]]) -> list[dict[str, float]]:
    """The mean over the batches of every term, at each logged iteration."""
    curves = [kept.images.curve for _, kept in batches]
    return [
        {name: float(f"{np.mean([p[name] for p in points]):.6g}") for name in points[0]}
        for points in zip(*curves, strict=True)
    ]
