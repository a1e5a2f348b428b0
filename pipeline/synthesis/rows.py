"""The Parquet rows and tar samples of one shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.dataset import plan
from pipeline.dataset.plan import Batch, ShardPlan
from pipeline.dataset.records import LABEL_COLUMNS
from pipeline.dataset.tar import Sample
from pipeline.inversion.selection import Flaw, Kept
from pipeline.inversion.usefulness import entropy
from pipeline.objective.compete import jensen_shannon
from pipeline.objective.presets import Objective
from pipeline.objective.terms import TERMS
from pipeline.synthesis.job import ShardJob
from pipeline.synthesis.spec import round_objective


def rows_of(
    job: ShardJob, shard: ShardPlan, batches: list[tuple[Batch, Kept]]
) -> Iterator[dict[str, Any]]:
    """Yield the Parquet row of each image, in the order of the tar.

    The columns ``offset``, ``size`` and ``sha256`` are missing: they are known once the tar is
    written. Without labels the columns that need one are None.

    Args:
        job: The shard to make.
        shard: The shard's labels and keys.
        batches: The images of each batch, in order.
    """
    names, labelled = job.config.teacher.class_names, job.config.teacher.labelled
    weights = round_objective(job.config, shard.round)
    index = 0
    for number, (batch, kept) in enumerate(batches):
        columns = _columns(kept, shard.labels[index : index + batch.size], weights)
        for position in range(batch.size):
            label = int(shard.labels[index])
            yield {
                "key": shard.key(job.spec["keys"], index),
                "shard": f"{shard.name}.tar",
                "index": index,
                "cls": label,
                "class_name": names[label] if names else str(label),
                "round": shard.round,
                "batch": number,
                "iterations": job.config.iterations,
                "height": kept.images.pixels.shape[2],
                "width": kept.images.pixels.shape[3],
                **{name: values[position] for name, values in columns.items()},
                **({} if labelled else dict.fromkeys(LABEL_COLUMNS)),
            }
            index += 1


def _columns(kept: Kept, labels: plan.Labels, weights: Objective) -> dict[str, list[Any]]:
    """The columns that the networks and the objective give: one value for each image of a batch."""
    intended = torch.from_numpy(labels.astype(np.int64))
    result = kept.images
    terms, logits, student = result.terms, result.logits, result.student_logits
    columns: dict[str, list[Any]] = {
        "seed": result.seeds.tolist(),
        "attempt": result.attempts.tolist(),
        "replaced": [Flaw(value).word for value in kept.replaced.tolist()],
        "flaw": [Flaw(value).word for value in kept.flaws.tolist()],
        **{f"factor_{name}": values.tolist() for name, values in terms.factor_of().items()},
        "loss_total": terms.total(weights).tolist(),
        **{f"loss_{name}": values.tolist() for name, values in terms.values.items()},
        "teacher_pred": logits.argmax(1).tolist(),
        "teacher_prob": result.confidence(intended).tolist(),
        "teacher_entropy": entropy(logits).tolist(),
    }
    if student is not None:
        columns["student_pred"] = student.argmax(1).tolist()
        columns["student_prob"] = student.softmax(1).gather(1, intended[:, None])[:, 0].tolist()
        columns["js_divergence"] = jensen_shannon(logits, student).tolist()
    return columns


def samples_of(
    rows: Sequence[dict[str, Any]],
    batches: list[tuple[Batch, Kept]],
    soft_labels: bool,
    captions: str | None,
    views: NDArray[np.float16] | None,
) -> Iterator[Sample]:
    """Yield the tar sample of each image: pixels, label, facts of its row, and the optional parts.

    Args:
        rows: The rows of :func:`rows_of`.
        batches: The images of each batch, in order.
        soft_labels: Whether a sample has the teacher's logits, in float16.
        captions: The template of the captions, or None for samples without one.
        views: The stored views of each image, ``[N, K, 9 + classes]``, or None for samples without
            them.
    """
    images = (image for _, kept in batches for image in kept.images.pixels.numpy())
    logits = (values for _, kept in batches for values in kept.images.logits.half().numpy())
    for index, (row, pixels, values) in enumerate(zip(rows, images, logits, strict=True)):
        yield Sample(
            key=row["key"],
            pixels=pixels,
            label=row["cls"],
            facts=facts_of_row(row),
            logits=values if soft_labels else None,
            caption=caption(captions, row["class_name"]),
            views=None if views is None else views[index],
        )


def facts_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a row that the sample's JSON member holds."""
    if row["teacher_prob"] is None:  # an image without label
        return {"round": row["round"]}
    facts = {name: row[name] for name in ("cls", "class_name", "round", "teacher_pred")}
    return {**facts, "teacher_prob": float(f"{row['teacher_prob']:.6g}")}


def caption(template: str | None, class_name: str) -> str | None:
    """The caption of an image of a class, or None without a template."""
    return None if template is None else template.replace("{}", class_name)


def mean_answers(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What a record says of the teacher's answers: ``agreement`` and ``confidence``.

    Both are None without labels.
    """
    if any(row["teacher_prob"] is None for row in rows):
        return {"agreement": None, "confidence": None}
    agree = [row["teacher_pred"] == row["cls"] for row in rows]
    return {
        "agreement": round(sum(agree) / len(agree), 6),
        "confidence": round(sum(row["teacher_prob"] for row in rows) / len(rows), 6),
    }


def class_counts(shard: ShardPlan) -> dict[str, int]:
    """The number of images of each class that a shard with labels has, by the class as text."""
    labels, counts = np.unique(shard.labels, return_counts=True)
    return {str(label): int(count) for label, count in zip(labels, counts, strict=True)}


def mean_curve(batches: list[tuple[Batch, Kept]], labelled: bool) -> list[dict[str, float]]:
    """The mean of each unweighted term at some iterations, averaged over the batches.

    Terms that need labels are left out without labels.
    """
    curves = [kept.images.curve for _, kept in batches]
    left_out = set() if labelled else {term.name for term in TERMS if term.needs_labels}
    names = [name for name in curves[0][0] if name not in left_out]
    return [
        {name: float(f"{np.mean([p[name] for p in points]):.6g}") for name in names}
        for points in zip(*curves, strict=True)
    ]
