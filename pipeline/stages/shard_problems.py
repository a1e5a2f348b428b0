"""Read one shard again and find everything that is wrong with it."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.dataset.layout import CAPTION, CLASS, FACTS, record_name, rows_name, tar_name
from pipeline.dataset.records import SCHEMA, ShardRecord
from pipeline.dataset.tar import decode_image, image_part, parse_tar
from pipeline.errors import BadShardError, first_line
from pipeline.storage import Location, digest_bytes, digest_json, read_many
from pipeline.synthesis.rows import caption
from pipeline.synthesis.shard_states import Found
from pipeline.teachers.predict import predict
from pipeline.teachers.teacher import Teacher

CHUNK = 256  # images in a forward pass of the teacher
_Samples = list[tuple[str, dict[str, bytes], int]]
_Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ShardFindings:
    """What reading a shard has shown.

    Attributes:
        problems: one line for each problem.
        labels: the classes of the images that could be read.
        confirmed: the number of images to which the teacher gives the intended class.
    """

    problems: list[str]
    labels: list[int]
    confirmed: int


def shard_problems(found: Found, root: Location, teacher: Teacher) -> ShardFindings:
    """Read a shard and compare it with its record, its rows, its plan and the teacher.

    Args:
        found: the shard, its record and its state.
        root: the folder of the dataset.
        teacher: the teacher.
    """
    contents = read_shard(root, found.shard.number)
    content = _content_problems(found, contents, teacher)
    problems = [*_record_problems(found, contents), *content.problems]
    return ShardFindings(problems, content.labels, content.confirmed)


def read_shard(root: Location, number: int) -> dict[str, bytes]:
    """The names and the bytes of a shard's tar and Parquet file, where these exist."""
    names = [tar_name(number), rows_name(number)]
    contents = zip(names, read_many([root / name for name in names]), strict=True)
    return {name: data for name, data in contents if data is not None}


def changed_files(record: ShardRecord, contents: Mapping[str, bytes]) -> Iterator[str]:
    """The names of a shard's files that are missing or have other bytes than were recorded."""
    for name, facts in record.files.items():
        if name not in contents or digest_bytes(contents[name]) != facts["sha256"]:
            yield name


def _record_problems(found: Found, contents: Mapping[str, bytes]) -> Iterator[str]:
    record, spec = found.record, found.spec
    if record is None:
        yield f"there is no readable record {record_name(found.shard.number)}"
        return
    if digest_json(record.spec) != record.spec_sha256:
        yield "its record contradicts itself: the digest of its spec is another"
    if record.spec_sha256 != digest_json(spec):
        old = {key for key in spec if digest_json(spec[key]) != digest_json(record.spec.get(key))}
        yield f"stale, made with another {', '.join(sorted(old)) or 'spec'}"
    elif found.state != "complete":
        yield "a file is missing or has another size"
    for name in changed_files(record, contents):
        if name in contents:
            yield f"{name} was changed: its sha256 is not the recorded one"


def _content_problems(
    found: Found, contents: Mapping[str, bytes], teacher: Teacher
) -> ShardFindings:
    """The problems of the tar and the rows."""
    record, shard = found.record, found.shard
    tar, rows_file = tar_name(shard.number), rows_name(shard.number)
    for name in (tar, rows_file):
        if name not in contents:
            return ShardFindings([f"{name} is missing"], [], 0)
    try:
        samples = list(parse_tar(tar, io.BytesIO(contents[tar])))
        rows = _read_rows(rows_file, contents[rows_file])
    except (BadShardError, ValueError) as error:
        return ShardFindings([" ".join(str(error).split())], [], 0)
    problems = []
    if [key for key, _, _ in samples] != [shard.key(i) for i in range(len(shard.labels))]:
        problems.append("the keys of its samples are not the planned ones")
    if [row["key"] for row in rows] != [key for key, _, _ in samples]:
        return ShardFindings([*problems, "its rows and samples do not join one to one"], [], 0)
    try:
        problems += _sample_problems(samples, rows, shard.labels.tolist())
        problems += _caption_problems(samples, rows, found.spec["captions"])
        pixels = np.stack([decode_image(image_part(parts)) for _, parts, _ in samples])
        labels = [int(parts[CLASS]) for _, parts, _ in samples]
    except Exception as error:  # a decoder may raise anything on a damaged image
        text = f"a sample cannot be read: {first_line(error)}"
        return ShardFindings([*problems, text], [], 0)
    if pixels.shape[1:] != teacher.shape:
        text = f"its images are {pixels.shape[1:]}, not {teacher.shape}"
        return ShardFindings([*problems, text], labels, 0)
    logits = predict(teacher.network, teacher.preprocessing, torch.from_numpy(pixels), CHUNK)
    answers = logits.argmax(1).numpy()
    # Another batch size or device rounds differently, which decides a tie the other way.
    if np.mean(np.array([row["teacher_pred"] for row in rows]) != answers) > 0.01:
        problems.append("the teacher gives its images other classes than its rows say")
    counts = {str(label): count for label, count in sorted(Counter(labels).items())}
    if record is not None and record.class_counts != counts:
        problems.append("its class counts are not the recorded ones")
    return ShardFindings(problems, labels, int(np.sum(answers == np.array(labels))))


def _sample_problems(samples: _Samples, rows: _Rows, labels: list[int]) -> Iterator[str]:
    """The first sample that differs from its row or its planned label."""
    for (key, parts, offset), row, label in zip(samples, rows, labels, strict=False):
        if not _sample_matches(parts, offset, row, label):
            yield f"sample {key} differs from its row"
            return


def _sample_matches(parts: dict[str, bytes], offset: int, row: dict[str, Any], label: int) -> bool:
    image = image_part(parts)
    facts = json.loads(parts[FACTS])
    return bool(
        int(parts[CLASS]) == label == row["cls"] == facts["cls"]
        and (offset, len(image)) == (row["offset"], row["size"])
        and digest_bytes(image) == row["sha256"].hex()
        and facts["teacher_pred"] == row["teacher_pred"]
    )


def _caption_problems(samples: _Samples, rows: _Rows, template: str | None) -> Iterator[str]:
    """The first sample without the caption of its class, or with a caption too many."""
    for (key, parts, _), row in zip(samples, rows, strict=True):
        expected = caption(template, row["class_name"])
        if parts.get(CAPTION) != (None if expected is None else expected.encode()):
            yield f"sample {key} has another caption than synthesis.captions asks for"
            return


def _read_rows(name: str, data: bytes) -> _Rows:
    try:
        table = pq.read_table(io.BytesIO(data))
    except Exception as error:
        raise ValueError(f"{name}: {error}") from error
    if not table.schema.equals(SCHEMA):
        raise ValueError(f"{name}: the columns are not those of this version")
    rows: _Rows = table.to_pylist()
    return rows
