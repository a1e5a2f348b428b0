"""The images on a page: some of each class and round, and the most doubtful ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.dataset.records import SCHEMA
from pipeline.reports.page.checks import percent
from pipeline.reports.page.classes import ClassFacts
from pipeline.reports.page.rows import NOBODY, Rows, read_rows_at
from pipeline.reports.page.run import Run
from pipeline.reports.page.thumbnails import MOST_BYTES, Thumbnail, thumbnails

MOST_CLASSES, WORST = 20, 8  # classes on a page, and how many of them are the worst ones
MOST_IMAGES = 160  # of all classes and rounds together
MOST_ROUNDS = 4
IN_A_LINE = 10  # images of a class, of all rounds together
UNLABELLED = 40  # images of a dataset without labels
DISTRUSTED = 24
FIRST = ("key", "class_name", "teacher_prob", "teacher_pred", "teacher_entropy", "flaw", "replaced")
"""The columns of a row that a page shows first."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture of the page.

    Attributes:
        number: finds its row in the page's table of rows.
        picture: the picture.
        caption: what the teacher says of it, and its flaw.
        doubtful: whether the caption is a reason for doubt.
        title: its class, if the page does not name the class elsewhere.
    """

    number: int
    picture: Thumbnail
    caption: str
    doubtful: bool
    title: str = ""

    @property
    def alt(self) -> str:
        """What a reader hears who does not see the picture."""
        row = self.picture.row
        name = None if row["cls"] is None else f"class {row['class_name']}"
        return ", ".join(filter(None, (f"image {row['key']}", name, self.caption)))


@dataclass(frozen=True, slots=True)
class ClassRow:
    """The pictures of a class, or of a dataset without labels (``facts`` is None), by round."""

    facts: ClassFacts | None
    rounds: Mapping[int, Sequence[Cell]]

    @property
    def label(self) -> int:
        """The number of the class, or :data:`~pipeline.reports.page.rows.NOBODY`."""
        return NOBODY if self.facts is None else self.facts.label


@dataclass(frozen=True, slots=True)
class Gallery:
    """All pictures of a page.

    Attributes:
        classes: the shown classes, in the order of their numbers; one line without labels.
        hidden: how many classes are not shown.
        distrusted: the images to look at with doubt, the worst first.
        table: the rows of all pictures, for the page's script.
    """

    classes: Sequence[ClassRow]
    hidden: int
    distrusted: Sequence[Cell]
    table: Mapping[str, Any]


def choose_classes(classes: Sequence[ClassFacts], most: int = MOST_CLASSES) -> list[ClassFacts]:
    """All classes, or the worst ones and evenly spaced others, in the order of their numbers.

    Args:
        classes: the worst first.
        most: how many to choose.
    """
    made = [facts for facts in classes if facts.images]
    chosen = made[:WORST] if len(made) > most else made[:most]
    others = sorted(made[len(chosen) :], key=lambda facts: facts.label)
    if others and len(chosen) < most:
        places = np.linspace(0, len(others) - 1, most - len(chosen)).round().astype(int)
        chosen = [*chosen, *(others[place] for place in places)]
    return sorted(chosen, key=lambda facts: facts.label)


def make_gallery(
    run: Run,
    chosen: Sequence[ClassFacts],
    classes: int,
    images: int = MOST_IMAGES,
    distrusted: int = DISTRUSTED,
    most: int = MOST_BYTES,
    first: int = 0,
) -> Gallery:
    """Read and encode the pictures. The same dataset gives the same pictures.

    Args:
        run: the run.
        chosen: the classes to show; empty for a dataset without labels.
        classes: how many classes the dataset has.
        images: about how many pictures of classes to show.
        distrusted: how many doubtful images to show.
        most: the most bytes of all pictures together.
        first: the number of the first picture on the page.
    """
    assert run.dataset is not None and run.rows is not None
    rows, rounds = run.rows, _rounds(run.rows)
    lines = [*chosen] if run.labelled else [None]
    each = min(IN_A_LINE // len(rounds), max(2, images // max(1, len(lines) * len(rounds))))
    each = each if run.labelled else UNLABELLED
    labels = [NOBODY if facts is None else facts.label for facts in lines]
    places = {
        label: {round_: rows.of_class(label, round_, each) for round_ in rounds} for label in labels
    }
    doubted = rows.distrusted(distrusted)
    wanted = [int(p) for by_round in places.values() for found in by_round.values() for p in found]
    wanted = list(dict.fromkeys([*wanted, *doubted.tolist()]))
    pictures = thumbnails(run.dataset, read_rows_at(run.dataset, rows, wanted), most)
    cells = {
        place: _cell(run, first + number, pictures[place], rows, place)
        for number, place in enumerate(wanted)
    }
    return Gallery(
        classes=[
            ClassRow(
                facts,
                {
                    round_: [cells[int(place)] for place in found]
                    for round_, found in places[label].items()
                    if len(found)
                },
            )
            for facts, label in zip(lines, labels, strict=True)
        ],
        hidden=classes - len(chosen),
        distrusted=[_with_class(run, cells[int(place)]) for place in doubted],
        table=_table([cells[place].picture for place in wanted]),
    )


def merge_tables(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of several galleries as one table."""
    merged: dict[str, Any] = {"columns": tables[0]["columns"], "about": tables[0]["about"]}
    return {**merged, "rows": [row for table in tables for row in table["rows"]]}


def _rounds(rows: Rows) -> list[int]:
    """The rounds to show: the first, the last, and evenly spaced ones between."""
    found = np.unique(rows.round)
    places = np.linspace(0, len(found) - 1, min(len(found), MOST_ROUNDS)).round().astype(int)
    return [int(round_) for round_ in found[places]]


def _cell(run: Run, number: int, picture: Thumbnail, rows: Rows, place: int) -> Cell:
    confidence, predicted = float(rows.confidence[place]), int(rows.predicted[place])
    wrong, flaw, words = predicted != int(rows.label[place]), picture.row.get("flaw"), []
    if run.labelled:
        words.append(percent(confidence))
    if wrong:
        words.append(f"teacher says {run.class_name(predicted)}")
    if flaw:
        words.append(flaw)
    return Cell(number, picture, ", ".join(words), bool(wrong or flaw or confidence < 0.5))


def _with_class(run: Run, cell: Cell) -> Cell:
    """The picture with the name of its class, which a number alone would not explain."""
    if not run.labelled:
        return cell
    name = str(cell.picture.row["class_name"])
    return replace(cell, title=f"class {name}" if name.isdecimal() else name)


def _table(pictures: Sequence[Thumbnail]) -> dict[str, Any]:
    named = {
        field.name: (field.metadata or {}).get(b"description", b"").decode() for field in SCHEMA
    }
    about = {name: named[name] for name in dict.fromkeys([*FIRST, *named])}
    return {
        "columns": list(about),
        "about": list(about.values()),
        "rows": [[_plain(picture.row.get(name)) for name in about] for picture in pictures],
    }


def _plain(value: Any) -> Any:
    """A value that JSON can hold, with at most six digits."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return str(value) if isinstance(value, int) and abs(value) > 2**53 else value
