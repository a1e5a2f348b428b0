"""Read a finished dataset again, all of it; say what is wrong with it, and mend it."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.config.schema import Config
from pipeline.dataset.layout import record_path
from pipeline.dataset.lock import locked
from pipeline.dataset.plan import Plan, plan_of
from pipeline.dataset.records import SCHEMA, ShardRecord, records_of
from pipeline.dataset.run_markers import MARKER
from pipeline.dataset.tar import decode_image, image_part, parse_tar
from pipeline.distillation.job import student_problem
from pipeline.errors import BadShardError
from pipeline.execution.runner import Runner
from pipeline.stages.synthesize import synthesize
from pipeline.storage import (
    Location,
    Stat,
    digest_bytes,
    digest_json,
    exists,
    listing,
    location,
    read_bytes,
    read_many,
    remove,
)
from pipeline.synthesis.index_files import Entry, dataset_files
from pipeline.synthesis.round_students import student_path
from pipeline.synthesis.shard_states import Found, survey
from pipeline.teachers.teacher import Teacher

LOGIT_CHUNK = 256


def verify(
    config: Config, teacher: Teacher, agreement: float, report: Callable[[int], object]
) -> list[str]:
    """Prove the dataset whole and true; one line for each thing that is wrong.

    Checks of each shard: the record is there and made to today's parameters, tar and Parquet have
    the recorded digests, every image decodes to the teacher's input and is described by exactly one
    row, labels are the planned ones, and the teacher answers each image as its row says. Of the
    dataset: balance, the share of labels the teacher confirms (at least ``agreement``), the
    dataset-level files, and that nothing else lies there.

    ``report`` is called with the number of images read.
    """
    layout, root = plan_of(config), location(config.paths.dataset)
    files = listing(root)
    problems: list[str] = []
    labels: Counter[int] = Counter()
    entries: list[Entry] = []
    confirmed = 0
    for found in survey(config, teacher.digest, files=files):
        contents = _contents(root, found.shard.number)
        texts, shard_labels, shard_confirmed = _shard_problems(found, contents, teacher)
        texts = [*_record_problems(found, contents), *texts]
        problems += [f"shard {found.shard.name}: {text}" for text in texts]
        labels.update(shard_labels)
        confirmed += shard_confirmed
        if found.record:
            entries.append(Entry.of(found.record, found.text))
        report(len(found.shard.labels))
    problems += _balance_problems(layout, labels)
    total = sum(labels.values())
    if total and confirmed / total < agreement:
        problems.append(
            f"the teacher confirms {confirmed / total:.1%} of labels, less than {agreement:.1%}"
        )
    if len(entries) == len(layout):  # otherwise said already, and these files cannot be right
        problems += _dataset_file_problems(dataset_files(config, entries, teacher.digest), root)
    problems += _student_problems(config)
    problems += _stranger_problems(config, layout, files)
    return problems


def repair(config: Config, teacher: Teacher, run: Runner) -> list[str]:
    """Make again just the shards, students and dataset-level files whose bytes were damaged.

    What is made again comes out as it was. Files that do not belong are left alone.

    Returns:
        The names of the shards and students that were made again.

    Raises:
        UserError: before anything is touched, if another run is at work on the dataset.
    """
    root, again = location(config.paths.dataset), []
    with locked(root, "paths.dataset"):
        for round_ in range(1, config.adaptive.rounds + 1):
            path = student_path(root, round_)
            if student_problem(path) is not None:
                remove(path.with_suffix(".json"))
                again.append(f"students/{path.name}")
        for number, record, _ in records_of(root, range(len(plan_of(config)))):
            if record is None or list(_changed_files(record, _contents(root, number))):
                remove(record_path(root, number))
                again.append(f"shard {number:06d}")
    synthesize(config, teacher, run)
    return again


def _contents(root: Location, number: int) -> dict[str, bytes]:
    """The tar and the rows of a shard, by name, where they are there."""
    names = [f"train/{number:06d}.tar", f"metadata/{number:06d}.parquet"]
    contents = zip(names, read_many([root / name for name in names]), strict=True)
    return {name: data for name, data in contents if data is not None}


def _changed_files(record: ShardRecord, contents: Mapping[str, bytes]) -> Iterator[str]:
    """The files of a shard that are gone or have other bytes than were recorded."""
    for name, facts in record.files.items():
        if name not in contents or digest_bytes(contents[name]) != facts["sha256"]:
            yield name


def _record_problems(found: Found, contents: Mapping[str, bytes]) -> Iterator[str]:
    record, spec = found.record, found.spec
    if record is None:
        yield f"there is no readable record metadata/{found.shard.name}.json"
        return
    if digest_json(record.spec) != record.spec_sha256:
        yield "its record contradicts itself"
    if record.spec_sha256 != digest_json(spec):
        old = {key for key in spec if digest_json(spec[key]) != digest_json(record.spec.get(key))}
        yield f"stale, made with another {', '.join(sorted(old)) or 'spec'}"
    elif found.state != "complete":
        yield "a file is missing or has another size"
    for name in _changed_files(record, contents):
        if name in contents:
            yield f"{name} was changed, its sha256 is not the recorded one"


def _shard_problems(
    found: Found, contents: Mapping[str, bytes], teacher: Teacher
) -> tuple[list[str], list[int], int]:
    """Problems of one shard's contents, the labels found, how many the teacher confirms."""
    record, shard = found.record, found.shard
    tar, parquet = f"train/{shard.name}.tar", f"metadata/{shard.name}.parquet"
    for name in (tar, parquet):
        if name not in contents:
            return [f"{name} is missing"], [], 0
    try:
        samples = list(parse_tar(tar, contents[tar]))
        rows = _read_rows(parquet, contents[parquet])
    except (BadShardError, ValueError) as error:
        return [" ".join(str(error).split())], [], 0
    problems = []
    if [key for key, _, _ in samples] != [shard.key(i) for i in range(len(shard.labels))]:
        problems.append("keys are not the planned ones")
    if [row["key"] for row in rows] != [key for key, _, _ in samples]:
        problems.append("rows and samples do not join one to one")
        return problems, [], 0
    try:
        for (key, parts, offset), row, label in zip(samples, rows, shard.labels, strict=False):
            if not _sample_matches(parts, offset, row, int(label)):
                problems.append(f"sample {key} is not what its row says")
                break
        pixels = np.stack([decode_image(image_part(parts)) for _, parts, _ in samples])
        labels = [int(parts["cls"]) for _, parts, _ in samples]
    except Exception as error:  # whatever a broken image makes a decoder say
        return [*problems, f"a sample cannot be read: {error}"], [], 0
    if pixels.shape[1:] != teacher.shape:
        return [*problems, f"images are {pixels.shape[1:]}, not {teacher.shape}"], labels, 0
    predictions = _predictions(teacher, torch.from_numpy(pixels))
    recorded = [row["teacher_pred"] for row in rows]
    # Another batch size or device rounds differently: a tie may fall the other way.
    if np.mean(np.array(recorded) != predictions) > 0.01:
        problems.append("the teacher answers its images otherwise than its rows say")
    if record is not None and record.class_counts != _counts(labels):
        problems.append("class counts are not the recorded ones")
    return problems, labels, int(np.sum(predictions == np.array(labels)))


def _sample_matches(parts: dict[str, bytes], offset: int, row: dict[str, Any], label: int) -> bool:
    image = image_part(parts)
    facts = json.loads(parts["json"])
    return bool(
        int(parts["cls"]) == label == row["cls"] == facts["cls"]
        and (offset, len(image)) == (row["offset"], row["size"])
        and digest_bytes(image) == row["sha256"].hex()
        and facts["teacher_pred"] == row["teacher_pred"]
    )


def _read_rows(name: str, data: bytes) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(io.BytesIO(data))
    except Exception as error:
        raise ValueError(f"{name}: {error}") from error
    if not table.schema.equals(SCHEMA):
        raise ValueError(f"{name}: the columns are not this version's")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _predictions(teacher: Teacher, pixels: torch.Tensor) -> np.ndarray:
    found = []
    with torch.no_grad():
        for chunk in pixels.split(LOGIT_CHUNK):
            images = teacher.preprocessing.normalise(chunk.to(teacher.device))
            found.append(teacher.network(images).argmax(1).cpu().numpy())
    return np.concatenate(found)


def _counts(labels: list[int]) -> dict[str, int]:
    return {str(label): count for label, count in sorted(Counter(labels).items())}


def _balance_problems(layout: Plan, labels: Counter[int]) -> Iterator[str]:
    planned = Counter(layout.labels.tolist())
    off = {label for label in planned | labels if planned[label] != labels[label]}
    if off:
        label = min(off)
        yield (
            f"balance: {len(off)} classes do not have their planned count "
            f"(class {label}: {labels[label]} of {planned[label]})"
        )


def _dataset_file_problems(files: Mapping[str, bytes], root: Location) -> Iterator[str]:
    for name, expected in files.items():
        if not exists(root / name):
            yield f"{name} is missing"
        elif read_bytes(root / name) != expected:
            yield f"{name} is not what the records say"


def _student_problems(config: Config) -> Iterator[str]:
    for round_ in range(1, config.adaptive.rounds + 1):
        problem = student_problem(student_path(location(config.paths.dataset), round_))
        if problem:
            yield f"students/{problem}"


def _stranger_problems(config: Config, layout: Plan, files: Mapping[str, Stat]) -> Iterator[str]:
    names = {f"{number:06d}" for number in range(len(layout))}
    expected = {f"train/{name}.tar" for name in names}
    expected |= {f"metadata/{name}.{kind}" for name in names for kind in ("json", "parquet")}
    expected |= {"README.md", "_info.json", "index.json", "provenance.json", "train/sizes.json"}
    expected |= {
        f"students/{round_ + 1:06d}.{kind}"
        for round_ in range(config.adaptive.rounds)
        for kind in ("safetensors", "json", "csv")
    }
    for name in files:
        if name not in expected and not MARKER.fullmatch(name):
            yield f"{name} does not belong to the dataset"
