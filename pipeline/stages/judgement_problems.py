"""Compare the rows and soft labels of a shard with the answers of the networks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.dataset.arrays import decode_array, encode_array
from pipeline.dataset.layout import LOGITS
from pipeline.dataset.records import LABEL_COLUMNS
from pipeline.inversion.usefulness import entropy
from pipeline.objective.compete import jensen_shannon
from pipeline.objective.terms import TERMS, Terms
from pipeline.stages.answers import CHUNK, Answers, slack
from pipeline.stages.factor_problems import row_factors
from pipeline.stages.row_problems import ShardContent
from pipeline.stages.view_problems import same_logits, view_problems

EXACT = 1e-3  # relative deviation of a value that no network computes
FEATURE = 0.05  # relative deviation of R_feature
_Expected = dict[str, tuple[Tensor, Tensor]]  # column to values and tolerances, each [N]
_STUDENT_COLUMNS = (
    "student_pred",
    "student_prob",
    "js_divergence",
    *(f"loss_{term.name}" for term in TERMS if term.needs_student),
)
_FROM_LOGITS = ("classification", "compete")  # terms with a tolerance of their own
# All other terms of one image follow from its pixels alone, unless they are added above.
_EXACT_TERMS = [term.name for term in TERMS if term.per_image and term.name not in _FROM_LOGITS]


def judgement_problems(content: ShardContent, answers: Answers) -> Iterator[str]:
    """Each column that differs from the networks' answers, with its first image.

    Args:
        content: the shard.
        answers: the answers to its images.
    """
    expected = _teacher_columns(answers)
    predictions = {"teacher_pred": answers.logits}
    if not content.config.teacher.labelled:  # these columns are empty, which row_problems compares
        expected = {name: of for name, of in expected.items() if name not in LABEL_COLUMNS}
        predictions = {}
    if answers.student_logits is not None:
        expected |= _student_columns(answers, answers.student_logits)
        predictions["student_pred"] = answers.student_logits
    elif (
        not content.shard.round
    ):  # in a later round the student is damaged, which is another problem
        for name in _STUDENT_COLUMNS:
            empty = [row[name] is None for row in content.rows]
            yield from _first(content, name, torch.tensor(empty))
    for column, (values, tolerance) in expected.items():
        found = _column(content, column)
        yield from _first(content, column, (found - values).abs() <= tolerance)
    for column, logits in predictions.items():
        yield from _first(content, column, _may_predict(_column(content, column), logits))
    feature = _feature_fits(content, answers)
    yield from _first(content, "loss_feature", feature)
    yield from _first(content, "loss_total", _total_fits(content, answers))
    yield from _soft_label_problems(content, answers.logits)
    if answers.view_logits is not None:
        yield from view_problems(content, answers.view_logits)


def _teacher_columns(answers: Answers) -> _Expected:
    spare, logits = slack(answers.logits), answers.logits
    chosen = logits.softmax(1).gather(1, answers.labels[:, None])[:, 0]
    spread = entropy(logits)
    return {
        "loss_classification": (answers.values["classification"], 2 * spare),
        "teacher_prob": (chosen, spare / 2),
        "teacher_entropy": (spread, 2 * spare * (spread + 0.1)),
        **{f"loss_{name}": _exact(answers.values[name]) for name in _EXACT_TERMS},
    }


def _student_columns(answers: Answers, student: Tensor) -> _Expected:
    spare, divergence = slack(student), jensen_shannon(answers.logits, student)
    both = spare + slack(answers.logits)
    compete = both / answers.objective.temperature
    if answers.objective.masked:  # the mask depends on two predictions, each of which may be a tie
        ties = _is_tie(answers.logits) | _is_tie(student)
        compete = torch.where(ties, 1.0, compete)
    if answers.objective.confident > 0:
        sure = answers.logits.softmax(1).gather(1, answers.labels[:, None])[:, 0]
        near = (sure - answers.objective.confident).abs() <= slack(answers.logits) / 2
        compete = torch.where(near, 1.0, compete)
    chosen = student.softmax(1).gather(1, answers.labels[:, None])[:, 0]
    return {
        "student_prob": (chosen, spare / 2),
        "js_divergence": (divergence, both),
        "loss_compete": (answers.values["compete"], compete),
    }


def _exact(values: Tensor) -> tuple[Tensor, Tensor]:
    return values, EXACT * values.abs() + 1e-6


def _is_tie(logits: Tensor) -> Tensor:
    """Whether another device may predict another class, bool ``[N]``."""
    if logits.shape[1] == 1:
        return torch.zeros(len(logits), dtype=torch.bool)
    best = logits.topk(2, 1).values
    return best[:, 0] - best[:, 1] <= 2 * slack(logits)


def _may_predict(classes: Tensor, logits: Tensor) -> Tensor:
    """Whether a network with these logits may predict these classes, bool ``[N]``."""
    known = (classes >= 0) & (classes < logits.shape[1])
    indices = torch.where(known, classes, 0).long()
    chosen = logits.gather(1, indices[:, None])[:, 0]
    return known & (chosen >= logits.amax(1) - 2 * slack(logits))


def _feature_fits(content: ShardContent, answers: Answers) -> Tensor:
    """Whether R_feature is that of the batch, where all of the batch was published at once."""
    found, place = _column(content, "loss_feature"), 0
    fits = torch.ones(len(found), dtype=torch.bool)
    for batch in content.batches:
        own = slice(place, place + batch.size)
        first = all(row["attempt"] == 0 for row in content.rows[own])
        if first and batch.size == batch.candidates and batch.size <= CHUNK:
            values = answers.values["feature"][own]
            fits[own] = (found[own] - values).abs() <= FEATURE * values.abs() + EXACT
        place += batch.size
    return fits


def _total_fits(content: ShardContent, answers: Answers) -> Tensor:
    """Whether each total is the weighted sum of the terms in its row."""
    names = [name for name in answers.values if content.rows[0][f"loss_{name}"] is not None]
    values = {name: _column(content, f"loss_{name}") for name in names}
    total = Terms(values, row_factors(content).double()).total(answers.objective)
    return (_column(content, "loss_total") - total).abs() <= EXACT * total.abs() + 1e-5


def _soft_label_problems(content: ShardContent, logits: Tensor) -> Iterator[str]:
    if not content.config.synthesis.soft_labels:
        return
    for (key, parts, _), expected in zip(content.samples, logits, strict=True):
        try:
            stored = decode_array(parts[LOGITS])
        except ValueError as error:
            yield f"sample {key}: its .{LOGITS}: {error}"
            return
        right_kind = stored.dtype == np.float16 and stored.shape == tuple(expected.shape)
        if not right_kind or encode_array(stored) != parts[LOGITS]:
            yield f"sample {key}: its .{LOGITS} is not float16 [{len(expected)}]"
            return
        if not same_logits(torch.from_numpy(stored)[None], expected[None]):
            yield f"sample {key}: its .{LOGITS} differs from the teacher's logits"
            return


def _column(content: ShardContent, name: str) -> Tensor:
    """A column of the rows, float64 ``[N]``; NaN where a row has no value."""
    values = [row[name] for row in content.rows]
    return torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float64)


def _first(content: ShardContent, column: str, fits: Tensor) -> Iterator[str]:
    """The first image that does not fit, if any. A comparison with NaN does not fit."""
    for row, fit in zip(content.rows, fits.tolist(), strict=True):
        if not fit:
            value = ascii(row[column])[:60]
            yield f"sample {row['key']}: the networks do not give {column} {value}"
            return
