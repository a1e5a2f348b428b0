"""The content of the index files: the card, the indexes of other libraries, the provenance."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from pipeline.config.networks import TeacherConfig
from pipeline.config.schema import Config
from pipeline.dataset.layout import (
    ALL_ROWS,
    ALL_TARS,
    CARD,
    CLASS,
    FACTS,
    LOGITS,
    PROVENANCE,
    SPLIT,
    TAR_SIZES,
    TIMM_INFO,
    WIDS_INDEX,
    record_name,
    shard_name,
    tar_name,
)
from pipeline.dataset.records import ShardRecord
from pipeline.dataset.tar import image_kind
from pipeline.storage import digest_bytes, digest_file, json_bytes
from pipeline.synthesis.shard_states import Found
from pipeline.synthesis.spec import teacher_facts
from pipeline.teachers.networks import public_source, weights_file

NAME = "dreamshard"


@dataclass(frozen=True, slots=True)
class Entry:
    """The facts of a shard that the index files contain. There may be very many entries.

    Attributes:
        number: the number of the shard.
        images: the number of its images.
        agreement: the share of images to which the teacher gives the intended class.
        size: of the tar, in bytes.
        md5: of the tar.
        digests: the name and the SHA-256 of each file, the record last.
        student: the digest of the student that its round competed with, or None.
        code: the digest of the code that made it.
        versions: of Python and the packages, as JSON. Most shards share one string.
    """

    number: int
    images: int
    agreement: float
    size: int
    md5: str
    digests: tuple[tuple[str, str], ...]
    student: str | None
    code: str
    versions: str

    @property
    def tar(self) -> str:
        """The name of the tar."""
        return tar_name(self.number)

    @classmethod
    def of(cls, record: ShardRecord, text: bytes) -> Entry:
        """The entry of a shard.

        Args:
            record: the record of the shard.
            text: the bytes of the record's file.
        """
        number = int(record.shard)
        files = [(name, facts["sha256"]) for name, facts in sorted(record.files.items())]
        return cls(
            number=number,
            images=record.images,
            agreement=record.agreement,
            size=record.tar["size"],
            md5=record.tar["md5"],
            digests=(*files, (record_name(number), digest_bytes(text))),
            student=record.spec["student"],
            code=record.spec["code"],
            versions=sys.intern(json.dumps(record.versions, sort_keys=True)),
        )


def entries_of(shards: Iterable[Found]) -> list[Entry]:
    """An entry for each shard that has a record."""
    return [Entry.of(found.record, found.text) for found in shards if found.record]


def index_files(config: Config, entries: Sequence[Entry], teacher_digest: str) -> dict[str, bytes]:
    """The name and the content of every index file. No content depends on time or host.

    Args:
        config: all parameters.
        entries: one for each shard, in order.
        teacher_digest: the digest of the teacher.
    """
    return {
        TIMM_INFO: json_bytes(_timm_info(entries)),
        WIDS_INDEX: json_bytes(_wids_index(entries)),
        TAR_SIZES: json_bytes({f"{shard_name(e.number)}.tar": e.images for e in entries}),
        CARD: card(config, entries, teacher_digest).encode(),
        PROVENANCE: json_bytes(_provenance(config, entries, teacher_digest)),
    }


def card(config: Config, entries: Sequence[Entry], teacher_digest: str) -> str:
    """The dataset card. Its YAML head tells Hugging Face ``datasets`` where the tars are."""
    images = sum(entry.images for entry in entries)
    agreement = sum(entry.agreement * entry.images for entry in entries) / images
    head = {
        "configs": [{"config_name": "default", "data_files": [{"split": SPLIT, "path": ALL_TARS}]}],
        "license": "other",
        "license_name": "as-the-teacher",
        "task_categories": ["image-classification"],
        "tags": ["synthetic", "deepinversion", "webdataset"],
        "size_categories": [_size_category(images)],
    }
    text = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(head, text)
    shape = config.teacher.input
    soft_labels = ""
    if config.synthesis.soft_labels:
        soft_labels = f", `<key>.{LOGITS}` (teacher logits, float16)"
    return f"""---
{text.getvalue()}---
# Synthetic images from a trained classifier

{images} images of {config.teacher.classes} classes in {len(entries)} shards, \
{shape.channels} x {shape.height} x {shape.width}. No real image was used: each was optimised \
for the label it carries (DeepInversion, Yin et al., CVPR 2020).

| | |
|---|---|
| teacher | `{public_source(config.teacher.source)}`, sha256 `{teacher_digest[:16]}...` |
| its licence | {config.teacher.license or "not stated by its source"} |
| its input | `(pixel / 255 - mean) / std`, mean {_values(shape.mean)}, std {_values(shape.std)}\
{f"; real images are resized to it with {shape.interpolation}" if shape.interpolation else ""} |
| objective | `{config.synthesis.objective.preset}`, {config.synthesis.iterations} iterations |
| adaptive rounds | {config.adaptive.rounds} |
| label that the teacher confirms | {agreement:.1%} of images |

Each sample is `<key>.{image_kind(shape.channels)}`, `<key>.{CLASS}` (class index) and \
`<key>.{FACTS}`{soft_labels}. \
`{ALL_ROWS}` has one row an image,
joined by `key`: where it lies, its digest, its seed, every loss term, and the teacher's answer.
`{PROVENANCE}` names what the whole was made from, by digest.

The images can reveal what the teacher saw in training: treat them with the care that the training
data asks for. Their licence follows the teacher's.
"""


def _values(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _timm_info(entries: Sequence[Entry]) -> dict[str, Any]:
    split = {
        "name": SPLIT,
        "filenames": [entry.tar for entry in entries],
        "shard_lengths": [entry.images for entry in entries],
        "num_samples": sum(entry.images for entry in entries),
    }
    return {"name": NAME, "splits": {SPLIT: split}}


def _wids_index(entries: Sequence[Entry]) -> dict[str, Any]:
    return {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": NAME,
        "shardlist": [
            {
                "url": entry.tar,
                "nsamples": entry.images,
                "filesize": entry.size,
                "md5sum": entry.md5,
            }
            for entry in entries
        ],
    }


def _provenance(config: Config, entries: Sequence[Entry], teacher_digest: str) -> dict[str, Any]:
    """The provenance of the dataset: an unsigned in-toto statement with SLSA provenance v1.

    :class:`~pipeline.dataset.dataset.Dataset` reads its ``externalParameters``.
    """
    inputs = [
        {
            "name": "teacher",
            "uri": public_source(config.teacher.source),
            "digest": {"sha256": teacher_digest},
        },
        *_weights(config.teacher),
    ]
    students = sorted({entry.student for entry in entries if entry.student})
    inputs += [
        {
            "name": "student",
            "uri": public_source(config.student.source),
            "digest": {"sha256": digest},
        }
        for digest in students
    ]
    subjects = [
        {"name": name, "digest": {"sha256": digest}}
        for entry in entries
        for name, digest in entry.digests[:-1]
    ]
    subjects += [
        {"name": name, "digest": {"sha256": digest}}
        for name, digest in (entry.digests[-1] for entry in entries)
    ]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": "https://slsa.dev/provenance/v1",
        "subject": subjects,
        "predicate": {
            "buildDefinition": {
                "buildType": "dreamshard/synthesis/v1",
                "externalParameters": {
                    "teacher": teacher_facts(config),
                    "student": {
                        "source": public_source(config.student.source),
                        "arguments": config.student.arguments,
                    },
                    "synthesis": config.synthesis.model_dump(mode="json"),
                    "objective": asdict(config.synthesis.objective.resolve()),
                    "adaptive": config.adaptive.model_dump(mode="json"),
                },
                "resolvedDependencies": inputs,
                "internalParameters": {
                    "code": entries[0].code,
                    "versions": [json.loads(v) for v in sorted({e.versions for e in entries})],
                },
            },
            "runDetails": {"builder": {"id": NAME}},
        },
    }


def _weights(teacher: TeacherConfig) -> list[dict[str, Any]]:
    """The file of the teacher's weights, with the digest of its bytes."""
    if teacher.weights is None:
        return []
    path = weights_file(teacher.source, teacher.weights, "teacher")
    return [
        {
            "name": "weights of the teacher",
            "uri": path.name if Path(teacher.weights).is_file() else teacher.weights,
            "digest": {"sha256": digest_file(path)},
            "annotations": {"license": teacher.license or "not stated by its source"},
        }
    ]


def _size_category(images: int) -> str:
    bounds = [
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
    ]
    return next((name for bound, name in bounds if images < bound), "1M<n<10M")
