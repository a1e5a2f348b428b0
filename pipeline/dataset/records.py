"""The Parquet row of each image, and the record that makes a shard complete."""

from __future__ import annotations

import functools
import io
import json
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Annotated, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from pipeline.config.fields import Count, Fraction, Positive, Section
from pipeline.dataset.layout import rows_name, tar_name
from pipeline.device.precision import Precision
from pipeline.objective import terms
from pipeline.storage import digest_bytes, digest_json, json_bytes

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


LABEL_COLUMNS = (
    *("cls", "class_name", "teacher_pred", "teacher_prob", "teacher_entropy"),
    *(f"loss_{term.name}" for term in terms.TERMS if term.needs_labels),
)
"""The columns that are null in the rows of images without labels."""


def parquet_schema(labelled: bool = True) -> pa.Schema:
    """The columns of the Parquet rows; those of the terms follow from ``terms.TERMS``."""
    nullable = NULLABLE if labelled else {*NULLABLE, *LABEL_COLUMNS}
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
            pa.field(name, kind, nullable=name in nullable, metadata={"description": text})
            for name, kind, text in [*_SAMPLE, *of_terms, *_JUDGEMENT]
        ]
    )


SCHEMA = parquet_schema()
_PACKAGES = ("torch", "numpy", "pillow", "pyarrow", "webdataset")


@functools.cache
def versions() -> dict[str, str]:
    """The versions of Python and of the packages that compute and write shards."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def encode_rows(rows: list[dict[str, Any]], facts: dict[str, Any], labelled: bool = True) -> bytes:
    """Encode rows as Parquet, with ``facts`` as JSON in the schema's entry ``dreamshard``."""
    metadata = {"dreamshard": json.dumps(facts, sort_keys=True)}
    schema = parquet_schema(labelled).with_metadata(metadata)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    return sink.getvalue()


TeacherParts = Mapping[str, str | None]
"""What decides a teacher's answers, by name: :attr:`pipeline.teachers.teacher.Teacher.parts`."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Number = Annotated[float, Field(allow_inf_nan=True)]  # a candidate that diverged may be in a mean


class FileFacts(TypedDict):
    """Digests and size of a file.

    Attributes:
        sha256: the digest, in hexadecimal.
        md5: another digest, which wids reads.
        size: in bytes.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    sha256: Sha256
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    size: Annotated[int, Field(ge=0, lt=2**48)]


class ShardRecord(Section):
    """The record of a shard, written last: the shard is complete, and was made to this spec.

    Attributes:
        shard: the name of the shard, without folder and extension.
        round: 0, or the adaptive round.
        first: the index of the shard's first image in the dataset.
        images: the number of images.
        spec: everything that the bytes of the shard depend on.
        spec_sha256: the digest of ``spec``.
        files: the names of the tar and the Parquet file to their digests and sizes.
        class_counts: the images of each class.
        batches: the sizes of the batches that were optimised together. They are smaller than the
            spec's where the memory did not hold those.
        precision: what the networks computed in; the spec may leave the choice to the device.
        agreement: the share of images to which the teacher gives the intended class; None without
            labels.
        confidence: the mean of the teacher's probability of the intended class; None without
            labels.
        replaced: the images that took the place of a bad one, by the flaw of the bad one.
        flaws: the images that are still bad after the last attempt, by their flaw.
        curve: the mean of every term along the optimisation, averaged over the batches.
        versions: of Python and of the packages that computed and wrote the shard.
        teacher_parts: what decides the teacher's answers, mostly as digests. Its digest is the
            spec's ``teacher``. None in records of earlier versions.
        sha256: the digest of everything above.
    """

    shard: Annotated[str, Field(pattern=r"^[0-9]{6,12}$")]
    round: Count
    first: Count
    images: Positive
    spec: dict[str, Any]
    spec_sha256: Sha256
    files: dict[str, FileFacts]
    class_counts: dict[str, Positive]
    batches: list[Positive]
    precision: Precision
    agreement: Fraction | None
    confidence: Fraction | None
    replaced: dict[str, Positive]
    flaws: dict[str, Positive]
    curve: list[dict[str, _Number]]
    versions: dict[str, str]
    teacher_parts: TeacherParts | None = None
    sha256: Sha256

    @model_validator(mode="after")
    def _names_its_files_and_inputs(self) -> Self:
        number = int(self.shard)
        if set(self.files) != {tar_name(number), rows_name(number)}:
            raise ValueError("files must be the shard's tar and its Parquet file")
        student, code = self.spec.get("student", 0), self.spec.get("code")
        if not (student is None or isinstance(student, str)) or not isinstance(code, str):
            raise ValueError("spec must name the code, and the student or null")
        parts = self.teacher_parts
        if parts is not None and digest_json(parts) != self.spec.get("teacher"):
            raise ValueError("teacher_parts must be those of the spec's teacher")
        return self

    @classmethod
    def of(cls, **facts: Any) -> ShardRecord:
        """A record of ``facts`` with their digest."""
        return cls(**facts, sha256=digest_bytes(json_bytes(facts)))

    @property
    def tar(self) -> FileFacts:
        """Digests and size of the shard's tar."""
        return self.files[tar_name(int(self.shard))]

    def to_json(self) -> dict[str, Any]:
        """The facts of the record as JSON values, as they were given."""
        return self.model_dump(exclude_unset=True)


def parse_record(text: bytes | None) -> ShardRecord | None:
    """Parse a record; None if one byte of it was changed, or if a fact is not of its kind."""
    try:
        record = ShardRecord.model_validate_json(text or b"")
    except ValueError:
        return None
    # Each key has its own line, so without the line of the digest the text is that of the facts
    # that the digest covers.
    rest = (text or b"").replace(f'\n "sha256": "{record.sha256}",\n'.encode(), b"\n", 1)
    return record if record.sha256 == digest_bytes(rest) else None


def is_current(
    record: ShardRecord | None, spec: dict[str, Any], size: Callable[[str], int]
) -> bool:
    """Whether a shard is complete and was made to today's spec, judged by the sizes of its files.

    Args:
        record: the record of the shard, or None.
        spec: the spec that today's parameters give the shard.
        size: gives the bytes of a file of that name, -1 where there is no such file.
    """
    if record is None or record.spec_sha256 != digest_json(spec):
        return False
    return all(size(name) == facts["size"] for name, facts in record.files.items())
