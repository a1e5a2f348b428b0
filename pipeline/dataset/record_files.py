"""Read the records of shards from the dataset's folder, many at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

from pipeline.dataset.layout import Layout, record_name, shard_name
from pipeline.dataset.records import ShardRecord, parse_record
from pipeline.storage import Location, Stat, read_many

CHUNK = 1000  # records in memory at once
LARGEST = 2**28  # bytes of a record


def read_record(path: Location) -> ShardRecord | None:
    """The record at ``path``, or None if there is none or its bytes were changed."""
    (text,) = read_many([path], LARGEST)
    return parse_record(text)


def records_of(
    root: Location, numbers: Iterable[int], files: Mapping[str, Stat] | None = None
) -> Iterator[tuple[int, ShardRecord | None, bytes]]:
    """The records of several shards, in the order of ``numbers``.

    Args:
        root: the folder of the dataset.
        numbers: the numbers of the shards.
        files: the listing of ``root``, where known. A record that it lacks is not asked for.

    Yields:
        The number, the record and the bytes of its file; the record is None where there is none,
        its bytes were changed, or it is the record of another shard.
    """
    layout, remaining = Layout(root), iter(numbers)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        present = [n for n in chunk if files is None or _is_listed(files, record_name(n))]
        paths = [layout.record(number) for number in present]
        texts = dict(zip(present, read_many(paths, LARGEST), strict=True))
        for number in chunk:
            text = texts.get(number)
            record = parse_record(text)
            if record is not None and record.shard != shard_name(number):
                record = None
            yield number, record, text or b""


def _is_listed(files: Mapping[str, Stat], name: str) -> bool:
    return name in files and files[name].size <= LARGEST
