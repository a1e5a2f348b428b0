"""One Parquet row for each published image, and the record that says a shard is complete."""

from __future__ import annotations

import functools
import io
import itertools
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.schema import Config
from pipeline.dataset.layout import record_path
from pipeline.dataset.plan import plan_of
from pipeline.errors import UserError
from pipeline.objective import terms
from pipeline.storage import (
    Location,
    Stat,
    digest_bytes,
    digest_json,
    json_bytes,
    location,
    read_many,
)

_Column = tuple[str, pa.DataType, str]  # name, type and description
_SAMPLE: list[_Column] = [
    ("key", pa.string(), "sample key in the tar"),
    ("shard", pa.string(), "tar that holds the sample"),
    ("index", pa.int32(), "position in the tar"),
    ("offset", pa.int64(), "first byte of the image in the tar"),
    ("size", pa.int32(), "bytes of the image"),
    ("sha256", pa.binary(32), "SHA-256 of the image's bytes"),
    ("cls", pa.int16(), "intended class"),
    ("class_name", pa.string(), "name of the intended class"),
    ("round", pa.int16(), "0, or the adaptive round"),
    ("batch", pa.int32(), "number, in the shard, of the batch that it was optimised in"),
    ("seed", pa.uint64(), "seed of the image's batch"),
    ("attempt", pa.int16(), "number of the attempt at its batch that it is from; 0 is the first"),
    ("replaced", pa.string(), "flaw of the image that this one replaced, or null"),
    ("flaw", pa.string(), "flaw after the last attempt: unconfirmed or duplicate, or null"),
    ("iterations", pa.int32(), "gradient steps"),
    ("height", pa.int16(), "height in pixels"),
    ("width", pa.int16(), "width in pixels"),
]
_JUDGEMENT: list[_Column] = [
    ("teacher_pred", pa.int16(), "class with the highest teacher logit"),
    ("teacher_prob", pa.float32(), "teacher's probability of cls"),
    ("teacher_entropy", pa.float32(), "entropy of the teacher's output, nats"),
    ("student_pred", pa.int16(), "class with the highest logit of the round's student, or null"),
    ("student_prob", pa.float32(), "student's probability of cls, or null"),
    ("js_divergence", pa.float32(), "JS(p_T, p_S), nats, or null"),
]
NULLABLE = {
    "replaced",
    "flaw",
    *(f"loss_{term.name}" for term in terms.TERMS if term.needs_student),
    "student_pred",
    "student_prob",
    "js_divergence",
}


def parquet_schema() -> pa.Schema:
    """The columns of the Parquet rows; those of the terms follow from ``terms.TERMS``."""
    of_terms: list[_Column] = [
        *(
            (f"factor_{name}", pa.float32(), f"factor of this image's weight of loss_{name}")
            for name in terms.factor_names()
        ),
        ("loss_total", pa.float32(), "weighted sum of the terms, for the published image"),
        *((f"loss_{term.name}", pa.float32(), term.description) for term in terms.TERMS),
    ]
    return pa.schema(
        [
            pa.field(name, kind, nullable=name in NULLABLE, metadata={"description": text})
            for name, kind, text in [*_SAMPLE, *of_terms, *_JUDGEMENT]
        ]
    )


SCHEMA = parquet_schema()
_PACKAGES = ("torch", "numpy", "pillow", "pyarrow", "webdataset")


@functools.cache
def versions() -> dict[str, str]:
    """Of Python, and of the packages that compute and write shards."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def encode_rows(rows: list[dict[str, Any]], facts: dict[str, Any]) -> bytes:
    """Parquet bytes of ``rows``, ``facts`` as JSON in the schema's ``dreamshard`` entry."""
    schema = SCHEMA.with_metadata({"dreamshard": json.dumps(facts, sort_keys=True)})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    return sink.getvalue()


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """``metadata/NNNNNN.json``, written last: the shard is complete, and made to this ``spec``.

    ``files`` maps a path below the dataset to its ``sha256``, ``md5`` and ``size`` in bytes;
    ``batches`` are the numbers of images that were optimised together, more and smaller ones than
    the spec's where the memory did not hold those; ``precision`` is what the networks ran in, which
    the spec may leave to the device; ``replaced`` counts the images that took the place of one that
    was bad, by what was wrong with it, and ``flaws`` those that are still bad themselves; ``curve``
    is the mean of every term along the optimisation, averaged over the batches; ``versions`` are
    those of Python and of the packages that computed and wrote it; ``sha256`` seals all the rest.
    """

    shard: str
    round: int
    first: int
    images: int
    spec: dict[str, Any]
    spec_sha256: str
    files: dict[str, dict[str, Any]]
    class_counts: dict[str, int]
    batches: list[int]
    precision: str
    agreement: float
    confidence: float
    replaced: dict[str, int]
    flaws: dict[str, int]
    curve: list[dict[str, float]]
    versions: dict[str, str]
    sha256: str

    @classmethod
    def of(cls, **facts: Any) -> ShardRecord:
        """A record of ``facts``, sealed with their digest."""
        return cls(**facts, sha256=digest_bytes(json_bytes(facts)))

    @property
    def tar(self) -> dict[str, Any]:
        return self.files[f"train/{self.shard}.tar"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_record(path: Location) -> ShardRecord | None:
    """The record at ``path``, or None where there is none, or one that was changed since."""
    (text,) = read_many([path])
    return parse_record(text)


def parse_record(text: bytes | None) -> ShardRecord | None:
    """The record that ``text`` is, or None if one byte of it is not as it was written."""
    try:
        record = ShardRecord(**json.loads(text or b""))
        # The keys are sorted and each has its own line: without the seal's line, the text is that
        # of all the rest.
        rest = (text or b"").replace(f'\n "sha256": "{record.sha256}",\n'.encode(), b"\n", 1)
    except (ValueError, TypeError):
        return None
    return record if record.sha256 == digest_bytes(rest) else None


def is_current(
    record: ShardRecord | None, spec: dict[str, Any], size: Callable[[str], int]
) -> bool:
    """Whether a shard is complete and made to today's ``spec``. Looks at sizes, not contents.

    ``size`` gives the bytes of a file by its name below the dataset, -1 where there is none.
    """
    if record is None or record.spec_sha256 != digest_json(spec):
        return False
    return all(size(name) == facts["size"] for name, facts in record.files.items())


CHUNK = 1000  # records in memory at once


def records_of(
    root: Location, numbers: Iterable[int], files: Mapping[str, Stat] | None = None
) -> Iterator[tuple[int, ShardRecord | None, bytes]]:
    """Number, record and the record's bytes of each shard; None where there is no sound record.

    Where ``files`` is given, no record is asked for that is not among them.
    """
    remaining = iter(numbers)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        paths = {number: record_path(root, number) for number in chunk}
        there = [n for n in chunk if files is None or f"metadata/{paths[n].name}" in files]
        texts = dict(zip(there, read_many([paths[n] for n in there]), strict=True))
        for number in chunk:
            text = texts.get(number)
            yield number, parse_record(text), text or b""


def read_records(config: Config) -> Iterator[ShardRecord]:
    """The records of all planned shards that have one, one at a time."""
    root = location(config.paths.dataset)
    for _, record, _ in records_of(root, range(len(plan_of(config)))):
        if record is not None:
            yield record


def dataset_digest(root: Location, numbers: Iterable[int]) -> str:
    """A digest of the images of complete shards, from their records."""
    digests = []
    for number, record, _ in records_of(root, numbers):
        if record is None:
            raise UserError(f"shard {number:06d} of {root} is missing: run synthesize first")
        digests.append(record.tar["sha256"])
    return digest_json(digests)
