"""The facts about each class, and the most frequent wrong answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.reports.page.run import Run

TEACHER = "teacher"
Confusion = Mapping[tuple[int, int], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFacts:
    """One class. Shares are in [0, 1]; None where nobody measured.

    Attributes:
        label: its number.
        name: its name, or the number.
        images: its images in the dataset.
        confirmed: share of them whose label the teacher confirms.
        confidence: the mean of the teacher's probability of the class.
        lowest: the lowest of these probabilities.
        flawed: images that are marked as flawed.
        replaced: images that took the place of a bad one.
        teacher: accuracy of the teacher on the images of the class that ``Saved.judged`` names.
        student: mean accuracy of the students on them.
        judged: the number of these images.
        confused: the class that students most often give instead, with its share; None if none.
    """

    label: int
    name: str
    images: int
    confirmed: float | None
    confidence: float | None
    lowest: float | None
    flawed: int
    replaced: int
    teacher: float | None
    student: float | None
    judged: int
    confused: tuple[int, float] | None

    @property
    def badness(self) -> tuple[float, float, float, int]:
        """Sorts the worst class first: by the student, else by the teacher's doubt."""
        student = 0.0 if self.student is None else 1 - self.student
        doubt = 1 - (1.0 if self.confirmed is None else self.confirmed)
        return (-student, -doubt, 1.0 if self.confidence is None else self.confidence, self.label)


def class_facts(run: Run) -> list[ClassFacts]:
    """The facts of every class of the dataset, the worst first; none without labels."""
    if not run.labelled:
        return []
    counts, students = run.tally.counts, student_answers(run)
    labels = sorted({*counts, *(label for label, _ in students)})
    size = max(labels, default=0) + 1
    rows = run.rows
    assert rows is not None
    seen = np.bincount(rows.label, minlength=size)
    sums = {
        name: np.bincount(rows.label, weights=values, minlength=size)
        for name, values in (
            ("confirmed", rows.confirmed),
            ("confidence", rows.confidence),
            ("flawed", rows.flawed),
            ("replaced", rows.replaced),
        )
    }
    lowest = np.full(size, math.inf)
    np.minimum.at(lowest, rows.label, rows.confidence)
    teacher = _accuracies(run.saved.confusion.get(TEACHER, {}))
    student = _accuracies(students)
    first = run.saved.confusion.get(TEACHER, {})
    found = []
    for label in labels:
        here = int(seen[label])
        found.append(
            ClassFacts(
                label=label,
                name=run.class_name(label),
                images=counts[label],
                confirmed=float(sums["confirmed"][label]) / here if here else None,
                confidence=float(sums["confidence"][label]) / here if here else None,
                lowest=float(lowest[label]) if here else None,
                flawed=int(sums["flawed"][label]),
                replaced=int(sums["replaced"][label]),
                teacher=teacher.get(label),
                student=student.get(label),
                judged=sum(count for (true, _), count in first.items() if true == label),
                confused=_most_confused(students, label),
            )
        )
    return sorted(found, key=lambda facts: facts.badness)


def student_answers(run: Run) -> dict[tuple[int, int], int]:
    """The answers of all students of the dataset together, without the baselines."""
    found: dict[tuple[int, int], int] = {}
    for model, confusion in run.saved.confusion.items():
        if model.startswith("student-"):
            for pair, count in confusion.items():
                found[pair] = found.get(pair, 0) + count
    return found


def worst_pairs(confusion: Confusion, most: int = 8) -> list[tuple[int, int, int]]:
    """The most frequent wrong answers: true class, given class, number of images."""
    wrong = [(true, given, count) for (true, given), count in confusion.items() if true != given]
    return sorted(wrong, key=lambda each: (-each[2], each[0], each[1]))[:most]


def matrix(confusion: Confusion, labels: Sequence[int]) -> list[list[float]]:
    """Shares of each row of a confusion matrix: rows are true classes, columns are answers."""
    table = []
    for true in labels:
        total = sum(count for (label, _), count in confusion.items() if label == true)
        table.append([confusion.get((true, given), 0) / (total or 1) for given in labels])
    return table


def _accuracies(confusion: Confusion) -> dict[int, float]:
    totals: dict[int, int] = {}
    for (true, _), count in confusion.items():
        totals[true] = totals.get(true, 0) + count
    return {label: confusion.get((label, label), 0) / total for label, total in totals.items()}


def _most_confused(confusion: Confusion, label: int) -> tuple[int, float] | None:
    total = sum(count for (true, _), count in confusion.items() if true == label)
    wrong = [
        (count, -given) for (true, given), count in confusion.items() if true == label != given
    ]
    if not wrong:
        return None
    count, given = max(wrong)
    return -given, count / total
