"""Read one shard again and find everything that is wrong with it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.dataset.layout import CLASS, record_name, rows_name, tar_name
from pipeline.dataset.row_files import read_rows
from pipeline.dataset.tar import Pixels, decode_image, holds_samples_alone, image_part, parse_tar
from pipeline.errors import BadShardError, first_line
from pipeline.stages.answers import Judges
from pipeline.stages.factor_problems import factor_problems
from pipeline.stages.judgement_problems import judgement_problems
from pipeline.stages.record_problems import (
    changed_files,
    executed_batches,
    record_problems,
    summary_problems,
)
from pipeline.stages.row_problems import (
    Samples,
    ShardContent,
    caption_problems,
    row_problems,
    sample_problems,
)
from pipeline.stages.shard_contents import read_shard
from pipeline.storage import Stat, digest_json
from pipeline.synthesis.shard_states import Found


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


def shard_problems(found: Found, files: Mapping[str, Stat], judges: Judges) -> ShardFindings:
    """Read a shard and compare it with its record, its rows, its plan and the networks.

    Args:
        found: the shard, its record and its state.
        files: the listing of the dataset's folder.
        judges: the networks, and the parameters.
    """
    contents = read_shard(judges.root, found.shard.number, len(found.shard.labels), judges.config)
    problems: list[str] = []
    if found.record is None:
        problems.append(f"there is no readable record {record_name(found.shard.number)}")
    else:
        problems += record_problems(found, found.record)
        problems += [
            f"{name} was changed: its sha256 is not the recorded one"
            for name in changed_files(found.record, contents)
            if name in contents
        ]
    for name in (tar_name(found.shard.number), rows_name(found.shard.number)):
        if name not in contents:
            large = f"has {files[name].size} bytes, too many" if name in files else "is missing"
            return ShardFindings([*problems, f"{name} {large}"], [], 0)
    try:
        content = _content_problems(found, contents, judges)
    except BadShardError as error:
        return ShardFindings([*problems, " ".join(str(error).split())], [], 0)
    return ShardFindings([*problems, *content.problems], content.labels, content.confirmed)


def _content_problems(found: Found, contents: Mapping[str, bytes], judges: Judges) -> ShardFindings:
    """The problems of the tar and the rows.

    Raises:
        BadShardError: one of the two cannot be read.
    """
    record, shard, teacher = found.record, found.shard, judges.teacher
    tar, rows_file = tar_name(shard.number), rows_name(shard.number)
    samples = list(parse_tar(tar, io.BytesIO(contents[tar])))
    keys = [key for key, _, _ in samples]
    problems: list[str] = []
    if keys != [shard.key(found.spec["keys"], index) for index in range(len(shard.labels))]:
        problems.append("the keys of its samples are not the planned ones")
    labelled = teacher.labelled
    try:
        rows, facts = read_rows(rows_file, contents[rows_file], len(shard.labels), labelled)
    except BadShardError as error:
        return ShardFindings([*problems, " ".join(str(error).split())], [], 0)
    if [row["key"] for row in rows] != keys:
        return ShardFindings([*problems, "its rows and samples do not join one to one"], [], 0)
    try:
        pixels = _pixels(samples, teacher.shape)
        labels = [int(parts[CLASS]) if labelled else 0 for _, parts, _ in samples]
    except (ValueError, KeyError, OverflowError) as error:
        text = f"a sample cannot be read: {first_line(error)}"
        return ShardFindings([*problems, text], [], 0)
    stale = record is not None and record.spec_sha256 != digest_json(found.spec)
    batches = shard.batches if record is None else executed_batches(shard, record)
    if batches is None:
        problems.append("the batches in its record are not a division of the planned ones")
        batches = shard.batches
    answers = judges.ask(shard, torch.from_numpy(pixels), batches)
    content = ShardContent(judges.config, shard, batches, samples, rows, facts, found.spec)
    if not stale:  # a stale shard follows from other parameters
        if not holds_samples_alone(contents[tar], samples):
            problems.append(f"{tar} has other bytes than its samples need: a header or its end")
        problems += sample_problems(content)
        problems += caption_problems(content)
        problems += row_problems(content)
        problems += factor_problems(content)
        problems += judgement_problems(content, answers)
        if record is not None:
            problems += summary_problems(record, shard, rows)
    confirmed = int(np.sum(answers.logits.argmax(1).numpy() == np.array(labels)))
    return ShardFindings(problems, labels, confirmed)


def _pixels(samples: Samples, shape: tuple[int, int, int]) -> Pixels:
    """The decoded images, uint8 ``[N, C, H, W]``.

    Raises:
        ValueError: an image has another shape than the teacher takes, or cannot be decoded.
        KeyError: a sample has no image.
    """
    images = []
    for key, parts, _ in samples:
        image = decode_image(image_part(parts))
        if image.shape != shape:
            raise ValueError(f"sample {key}: its image is {image.shape}, not {shape}")
        images.append(image)
    return np.stack(images)
