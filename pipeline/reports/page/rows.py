"""The Parquet rows of a dataset as columns: the teacher's answer for each image."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.dataset import Dataset, Shard
from pipeline.errors import BadShardError
from pipeline.storage import read_many

MOST_SHARDS = 2000  # of a larger dataset, the rows of evenly spaced shards are read
CHUNK = 64  # Parquet files in memory at once
NOBODY = -1  # stands for a label or an answer that does not exist
_COLUMNS = (
    "cls",
    "round",
    "teacher_pred",
    "teacher_prob",
    "flaw",
    "replaced",
    "student_pred",
    "js_divergence",
)
Whole = NDArray[np.int64]
Real = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One value for each image whose row was read, ``[N]`` each, in publishing order.

    Attributes:
        shard: the number of the shard.
        index: the place in the shard.
        label: the intended class, or :data:`NOBODY` without labels.
        round: 0, or the adaptive round.
        predicted: the teacher's class, or :data:`NOBODY` without labels.
        confidence: the teacher's probability of the intended class; NaN without labels.
        flawed: whether a flaw is marked.
        replaced: whether the image took the place of a bad one.
        student: the class of the round's student, or :data:`NOBODY`.
        divergence: JS(p_T, p_S) in nats, NaN where there is no student.
        shards: how many shards were read.
        missing: how many shards have no Parquet file.
        total: how many shards the dataset has.
    """

    shard: Whole
    index: Whole
    label: Whole
    round: Whole
    predicted: Whole
    confidence: Real
    flawed: NDArray[np.bool_]
    replaced: NDArray[np.bool_]
    student: Whole
    divergence: Real
    shards: int
    missing: int
    total: int

    def __len__(self) -> int:
        return len(self.label)

    @property
    def read_from(self) -> str:
        """Which rows were read, as a sentence; empty if they are those of all shards."""
        if self.shards == self.total:
            return ""
        return f"Read from the rows of {self.shards:,} of {self.total:,} shards."

    @property
    def confirmed(self) -> NDArray[np.bool_]:
        """Whether the teacher gives the intended class."""
        found: NDArray[np.bool_] = self.predicted == self.label
        return found

    def distrusted(self, most: int) -> Whole:
        """The places of the images to look at with doubt, the worst first.

        Flawed images come first, then those whose label the teacher does not confirm, then those
        with the lowest confidence. Without labels there are flawed ones only.
        """
        order = np.lexsort((self.confidence, self.confirmed, ~self.flawed))
        known = self.flawed | (self.label != NOBODY)
        worst: Whole = order[known[order]][:most].astype(np.int64)
        return worst

    def of_class(self, label: int, round_: int, most: int) -> Whole:
        """The places of evenly spaced images of a class in a round."""
        places = np.flatnonzero((self.label == label) & (self.round == round_))
        if len(places) <= most:
            return places
        return places[np.linspace(0, len(places) - 1, most).round().astype(np.int64)]


def read_columns(dataset: Dataset) -> Rows:
    """Read the columns that the page needs, of all shards or of evenly spaced ones.

    Raises:
        BadShardError: a Parquet file is damaged.
    """
    shards = dataset.shards()
    chosen = shards[:: -(-len(shards) // MOST_SHARDS) or 1]
    tables, missing = [], 0
    for shard, table in _tables(dataset, chosen):
        if table is None:
            missing += 1
        else:
            tables.append((shard, table))
    columns = {name: _joined([table[name] for _, table in tables]) for name in _COLUMNS}
    sizes = [table.num_rows for _, table in tables]
    numbers = [shard.number for shard, _ in tables]
    indexes = [np.arange(size) for size in sizes] or [np.arange(0)]
    return Rows(
        shard=np.repeat(np.array(numbers, dtype=np.int64), sizes),
        index=np.concatenate(indexes),
        label=_whole(columns["cls"]),
        round=_whole(columns["round"]),
        predicted=_whole(columns["teacher_pred"]),
        confidence=_real(columns["teacher_prob"]),
        flawed=_present(columns["flaw"]),
        replaced=_present(columns["replaced"]),
        student=_whole(columns["student_pred"]),
        divergence=_real(columns["js_divergence"]),
        shards=len(tables),
        missing=missing,
        total=len(shards),
    )


def read_rows_at(dataset: Dataset, rows: Rows, places: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The whole Parquet rows of some images, by their places in ``rows``."""
    found: dict[int, dict[str, Any]] = {}
    shards = dataset.shards()
    wanted = sorted(set(places))
    groups = {
        number: list(group)
        for number, group in itertools.groupby(wanted, lambda place: int(rows.shard[place]))
    }
    for shard, table in _tables(dataset, [shards[number] for number in groups], None):
        if table is None:
            raise BadShardError(f"shard {shard.name} lost its Parquet file: run the command again")
        here = groups[shard.number]
        taken = table.take(pa.array([int(rows.index[place]) for place in here])).to_pylist()
        found |= dict(zip(here, taken, strict=True))
    return found


def _tables(
    dataset: Dataset, shards: Sequence[Shard], columns: Sequence[str] | None = _COLUMNS
) -> Iterator[tuple[Shard, pa.Table | None]]:
    paths, remaining = dataset.paths.rows, iter(shards)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        texts = read_many([paths[shard.number] for shard in chunk])
        for shard, text in zip(chunk, texts, strict=True):
            yield shard, None if text is None else _parse(shard, text, columns)


def _parse(shard: Shard, text: bytes, columns: Sequence[str] | None) -> pa.Table:
    try:
        wanted = None if columns is None else list(columns)
        table = pq.read_table(io.BytesIO(text), columns=wanted, use_threads=False)
    except Exception as error:  # pyarrow may raise anything on a damaged file
        raise BadShardError(
            f"the Parquet file of shard {shard.name} cannot be read "
            f"({' '.join(str(error).split())[:100]}): run verify --repair"
        ) from error
    if columns is not None and set(columns) - set(table.column_names):
        raise BadShardError(
            f"the Parquet file of shard {shard.name} lacks columns: another version of this "
            "project wrote it. Run synthesize, which makes the shard again"
        )
    return table


def _joined(chunks: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    parts = [part for chunk in chunks for part in chunk.chunks]
    return pa.chunked_array(parts, type=None if parts else pa.int64())


def _whole(column: pa.ChunkedArray) -> Whole:
    values: Whole = column.cast(pa.int64()).fill_null(NOBODY).to_numpy()
    return values


def _real(column: pa.ChunkedArray) -> Real:
    values: Real = column.cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return values


def _present(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    values: NDArray[np.bool_] = column.is_valid().to_numpy()
    return values
