"""Read the Parquet rows of a shard, within bounds that its plan sets."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.records import SCHEMA, parquet_schema
from pipeline.errors import BadShardError

Row = dict[str, Any]
MOST_BYTES = 2**14  # bytes of a row before compression
MOST_TEXT = 2**12  # bytes of a text in a row
_MAGIC = b"PAR1"  # the first and the last bytes of a Parquet file
_TEXTS = [field.name for field in SCHEMA if pa.types.is_string(field.type)]


def read_rows(
    name: str, data: bytes, images: int, labelled: bool = True
) -> tuple[list[Row], dict[str, Any]]:
    """Read the rows of a shard.

    Args:
        name: the name of the Parquet file, for errors.
        data: its bytes.
        images: the number of rows that the shard must have.
        labelled: whether the images have labels.

    Returns:
        The rows, and the facts of the schema's entry ``dreamshard``.

    Raises:
        BadShardError: the file is damaged, or it has other columns, metadata or numbers of rows.
    """
    expected = SCHEMA if labelled else parquet_schema(labelled)
    try:
        schema = pq.read_schema(io.BytesIO(data))
        if not schema.equals(expected.with_metadata(schema.metadata), check_metadata=True):
            raise BadShardError(f"{name}: the columns are not those of this version")
        facts = _facts(name, schema)
        # Texts stay dictionaries until their length is known: one text may be repeated often.
        file = pq.ParquetFile(io.BytesIO(data), read_dictionary=_TEXTS)
        _check_size(name, file.metadata, images)
        _check_layout(name, data, file.metadata)
        table = file.read()
        _check_texts(name, table)
        rows: list[Row] = table.cast(expected).to_pylist()
    except BadShardError:
        raise
    except Exception as error:  # pyarrow may raise anything on a damaged file
        raise BadShardError(f"{name}: {' '.join(str(error).split())}") from error
    return rows, facts


def _check_size(name: str, metadata: pq.FileMetaData, images: int) -> None:
    if metadata.num_rows != images:
        raise BadShardError(f"{name}: it has {metadata.num_rows} rows, not {images}")
    groups = [metadata.row_group(index) for index in range(min(metadata.num_row_groups, images))]
    if sum(group.num_rows for group in groups) != images:
        raise BadShardError(f"{name}: its groups of rows do not add up")
    if sum(group.total_byte_size for group in groups) > MOST_BYTES * (images + 64):
        raise BadShardError(f"{name}: its rows are too large to be those of {images} images")


def _check_layout(name: str, data: bytes, metadata: pq.FileMetaData) -> None:
    """Refuse bytes between the columns, and between the last column and the footer."""
    end = len(_MAGIC)
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            starts = (column.dictionary_page_offset, column.data_page_offset)
            if min(start for start in starts if start is not None) != end:
                raise BadShardError(f"{name}: it has other bytes before a column than its rows")
            end += column.total_compressed_size
    if end + metadata.serialized_size + 4 + len(_MAGIC) != len(data):
        raise BadShardError(f"{name}: it has other bytes than its rows before its footer")


def _check_texts(name: str, table: pa.Table) -> None:
    for column in _TEXTS:
        for chunk in table.column(column).chunks:
            texts = chunk.dictionary.to_pylist()
            if any(text is not None and len(text) > MOST_TEXT for text in texts):
                raise BadShardError(f"{name}: a text of column {column} is too long")


def _facts(name: str, schema: pa.Schema) -> dict[str, Any]:
    """The facts in the schema's metadata, which must hold nothing else."""
    metadata = schema.metadata or {}
    if set(metadata) != {b"dreamshard"}:
        raise BadShardError(f"{name}: its metadata has other entries than `dreamshard`")
    facts = json.loads(metadata[b"dreamshard"])
    if not isinstance(facts, dict):
        raise BadShardError(f"{name}: the entry `dreamshard` of its metadata is not an object")
    return facts
