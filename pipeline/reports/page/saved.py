"""The reports that earlier stages left in ``paths.reports``, read back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.reports.files import CONFUSION, CONFUSION_SYNTHETIC

Curve = list[tuple[float, float]]
"""Pairs of a step and a value."""
MOST_BYTES = 2**26  # of a report


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """The reports of the stages. A part is empty if its stage did not run.

    Attributes:
        synthesis: ``synthesis.json``.
        distillation: ``distillation.json``.
        evaluation: ``evaluation.json``.
        measures: ``measures.json``.
        logs: the learning curves, by student and by quantity.
        confusion: for each model the number of images by class and by answer.
        judged: the images that the confusion is about: ``real`` ones, or the dataset's own.
        alike: the picture of the most similar pairs, a PNG file.
    """

    synthesis: Mapping[str, Any] = field(default_factory=dict)
    distillation: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, Any] = field(default_factory=dict)
    logs: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    confusion: Mapping[str, Mapping[tuple[int, int], int]] = field(default_factory=dict)
    judged: Literal["real", "synthetic"] = "real"
    alike: bytes | None = None


def read_saved(reports: Path, evaluated: bool) -> Saved:
    """Read all reports of a folder.

    Args:
        reports: the folder ``paths.reports``.
        evaluated: whether ``evaluation.data`` is set. If not, accuracies of an earlier setting are
            left out, as in ``summary``.

    Raises:
        UserError: a report is damaged.
    """
    alike = _read(reports / "alike.png")
    confusion = _confusion(reports / CONFUSION) if evaluated else {}
    return Saved(
        synthesis=_json(reports / "synthesis.json"),
        distillation=_json(reports / "distillation.json"),
        evaluation=_json(reports / "evaluation.json") if evaluated else {},
        measures=_json(reports / "measures.json"),
        logs=parse_logs(_rows(reports / "distillation.csv"), reports / "distillation.csv"),
        confusion=confusion or _confusion(reports / CONFUSION_SYNTHETIC),
        judged="real" if confusion else "synthetic",
        alike=alike,
    )


def parse_logs(rows: list[dict[str, str]], path: object) -> dict[str, dict[str, Curve]]:
    """The learning curves of students.

    Args:
        rows: with the columns ``step`` and ``student``, and one for each quantity.
        path: the file that the rows are from, for errors.
    """
    logs: dict[str, dict[str, Curve]] = {}
    try:
        for row in rows:
            curves = logs.setdefault(row["student"], {})
            for name in row.keys() - {"student", "step"}:
                curves.setdefault(name, []).append((float(row["step"]), float(row[name])))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error
    return logs


def parse_csv(text: bytes) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(text.decode(), newline="")))


def _confusion(path: Path) -> dict[str, dict[tuple[int, int], int]]:
    found: dict[str, dict[tuple[int, int], int]] = {}
    try:
        for row in _rows(path):
            pair = (int(row["label"]), int(row["predicted"]))
            found.setdefault(row["model"], {})[pair] = int(row["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        return parse_csv(_read(path) or b"")
    except (ValueError, csv.Error) as error:
        raise _damaged(path) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path) or b"{}")
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _read(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"the report {path} is too large: delete it, and run its stage again")
    return path.read_bytes()


def _damaged(path: object) -> UserError:
    return UserError(f"the report {path} is damaged: delete it, and run its stage again")
