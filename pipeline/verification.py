"""Read a finished dataset again, all of it; say what is wrong with it, and mend it."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.adaptive import dataset_students, student_path, synthesize
from pipeline.config import Config
from pipeline.dataset import dataset_files
from pipeline.distillation import student_problem
from pipeline.plan import Plan, ShardPlan
from pipeline.provenance import SCHEMA, ShardRecord, is_current, read_record
from pipeline.running import Runner
from pipeline.shards import BadShardError, decode_image, image_part, read_tar
from pipeline.storage import digest_bytes, digest_file, digest_json
from pipeline.synthesis import plan_of, record_path, shard_spec
from pipeline.teacher import Teacher

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
    layout, root = plan_of(config), Path(config.paths.dataset)
    problems: list[str] = []
    labels: Counter[int] = Counter()
    confirmed = 0
    students = dataset_students(config)
    for shard in layout:
        problems += _record_problems(config, shard, teacher, students)
        found, shard_labels, shard_confirmed = _shard_problems(config, shard, teacher)
        problems += [f"shard {shard.name}: {text}" for text in found]
        labels.update(shard_labels)
        confirmed += shard_confirmed
        report(len(shard.labels))
    problems += _balance_problems(layout, labels)
    total = sum(labels.values())
    if total and confirmed / total < agreement:
        problems.append(
            f"the teacher confirms {confirmed / total:.1%} of labels, less than {agreement:.1%}"
        )
    problems += _dataset_file_problems(config, layout, teacher, root)
    problems += _student_problems(config)
    problems += _stranger_problems(config, layout, root)
    return problems


def repair(config: Config, run: Runner) -> list[str]:
    """Make again just the shards, students and dataset-level files whose bytes were damaged.

    What is made again comes out as it was. Files that do not belong are left alone.

    Returns:
        The names of the shards and students that were made again.
    """
    root, again = Path(config.paths.dataset), []
    for round_ in range(1, config.adaptive.rounds + 1):
        path = student_path(root, round_)
        if student_problem(path) is not None:
            path.with_suffix(".json").unlink(missing_ok=True)
            again.append(f"students/{path.name}")
    for number in range(len(plan_of(config))):
        path = record_path(root, number)
        record = read_record(path)
        if record is None or list(_changed_files(root, record)):
            path.unlink(missing_ok=True)
            again.append(f"shard {path.stem}")
    synthesize(config, run)
    return again


def _changed_files(root: Path, record: ShardRecord) -> Iterator[str]:
    """The files of a shard that are gone or have other bytes than were recorded."""
    for name, facts in record.files.items():
        path = root / name
        if not path.is_file() or digest_file(path) != facts["sha256"]:
            yield name


def _record_problems(
    config: Config, shard: ShardPlan, teacher: Teacher, students: dict[int, str]
) -> Iterator[str]:
    root = Path(config.paths.dataset)
    record = read_record(record_path(root, shard.number))
    if record is None:
        yield f"shard {shard.name}: there is no readable record metadata/{shard.name}.json"
        return
    if digest_json(record.spec) != record.spec_sha256:
        yield f"shard {shard.name}: its record contradicts itself"
    spec = shard_spec(config, shard, teacher.digest, students.get(shard.round))
    if record.spec_sha256 != digest_json(spec):
        old = {key for key in spec if digest_json(spec[key]) != digest_json(record.spec.get(key))}
        yield f"shard {shard.name}: stale, made with another {', '.join(sorted(old)) or 'spec'}"
    elif not is_current(record, spec, root):
        yield f"shard {shard.name}: a file is missing or has another size"
    for name in _changed_files(root, record):
        if (root / name).is_file():
            yield f"shard {shard.name}: {name} was changed, its sha256 is not the recorded one"


def _shard_problems(
    config: Config, shard: ShardPlan, teacher: Teacher
) -> tuple[list[str], list[int], int]:
    """Problems of one shard's contents, the labels found, how many the teacher confirms."""
    root = Path(config.paths.dataset)
    record = read_record(record_path(root, shard.number))
    try:
        samples = list(read_tar(root / "train" / f"{shard.name}.tar"))
        rows = _read_rows(root / "metadata" / f"{shard.name}.parquet")
    except (BadShardError, OSError, ValueError) as error:
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


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
    except Exception as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not table.schema.equals(SCHEMA):
        raise ValueError(f"{path.name}: the columns are not this version's")
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


def _dataset_file_problems(
    config: Config, layout: Plan, teacher: Teacher, root: Path
) -> Iterator[str]:
    records = [read_record(record_path(root, number)) for number in range(len(layout))]
    whole: list[ShardRecord] = [record for record in records if record is not None]
    if len(whole) < len(layout):
        return  # said already, and these files cannot be right without it
    for name, expected in dataset_files(config, whole, teacher.digest).items():
        path = root / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.read_bytes() != expected:
            yield f"{name} is not what the records say"


def _student_problems(config: Config) -> Iterator[str]:
    for round_ in range(1, config.adaptive.rounds + 1):
        problem = student_problem(student_path(Path(config.paths.dataset), round_))
        if problem:
            yield f"students/{problem}"


def _stranger_problems(config: Config, layout: Plan, root: Path) -> Iterator[str]:
    names = {f"{number:06d}" for number in range(len(layout))}
    expected = {f"train/{name}.tar" for name in names}
    expected |= {f"metadata/{name}.{kind}" for name in names for kind in ("json", "parquet")}
    expected |= {"README.md", "_info.json", "index.json", "provenance.json", "train/sizes.json"}
    expected |= {
        f"students/{round_ + 1:06d}.{kind}"
        for round_ in range(config.adaptive.rounds)
        for kind in ("safetensors", "json", "csv")
    }
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_file() and name not in expected:
            yield f"{name} does not belong to the dataset"
