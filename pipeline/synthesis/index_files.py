"""The content of the dataset-level files: card, indexes and provenance."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from pipeline.config.schema import Config
from pipeline.config.teacher import TeacherConfig
from pipeline.dataset.records import ShardRecord
from pipeline.dataset.tar import image_kind
from pipeline.storage import digest_bytes, digest_file, json_bytes
from pipeline.synthesis.shard_states import Found
from pipeline.synthesis.spec import teacher_facts
from pipeline.teachers.networks import public_source, weights_file

NAME = "dreamshard"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the dataset-level files say of a shard. Small: there may be very many."""

    shard: str
    images: int
    agreement: float
    size: int  # of the tar, bytes
    md5: str  # of the tar
    digests: tuple[tuple[str, str], ...]  # file name to SHA-256, the record's last
    student: str | None
    code: str
    versions: str  # JSON, of which all shards mostly share one

    @classmethod
    def of(cls, record: ShardRecord, text: bytes) -> Entry:
        """The entry of a record whose file holds ``text``."""
        files = [(name, facts["sha256"]) for name, facts in sorted(record.files.items())]
        return cls(
            shard=record.shard,
            images=record.images,
            agreement=record.agreement,
            size=record.tar["size"],
            md5=record.tar["md5"],
            digests=(*files, (f"metadata/{record.shard}.json", digest_bytes(text))),
            student=record.spec["student"],
            code=record.spec["code"],
            versions=sys.intern(json.dumps(record.versions, sort_keys=True)),
        )


def entries_of(shards: Iterable[Found]) -> list[Entry]:
    """An entry for each shard that has a record."""
    return [Entry.of(found.record, found.text) for found in shards if found.record]


def dataset_files(
    config: Config, entries: Sequence[Entry], teacher_digest: str
) -> dict[str, bytes]:
    """Path below the dataset to content. Nothing in them depends on time or host."""
    return {
        "_info.json": json_bytes(_timm_info(entries)),
        "index.json": json_bytes(_wids_index(entries)),
        "train/sizes.json": json_bytes({f"{e.shard}.tar": e.images for e in entries}),
        "README.md": card(config, entries, teacher_digest).encode(),
        "provenance.json": json_bytes(_provenance(config, entries, teacher_digest)),
    }


def card(config: Config, entries: Sequence[Entry], teacher_digest: str) -> str:
    """The dataset card; its YAML head tells Hugging Face ``datasets`` where the tars are."""
    images = sum(entry.images for entry in entries)
    agreement = sum(entry.agreement * entry.images for entry in entries) / images
    head = {
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "train/*.tar"}]}
        ],
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
| objective | `{config.preset}`, {config.synthesis.iterations} iterations |
| adaptive rounds | {config.adaptive.rounds} |
| label that the teacher confirms | {agreement:.1%} of images |

Each sample is `<key>.{image_kind(shape.channels)}`, `<key>.cls` (class index) and `<key>.json`\
{", `<key>.logits.npy` (teacher logits, float16)" if config.synthesis.soft_labels else ""}. \
`metadata/*.parquet` has one row an image,
joined by `key`: where it lies, its digest, its seed, every loss term, and the teacher's answer.
`provenance.json` names what the whole was made from, by digest.

The images can reveal what the teacher saw in training: treat them with the care that the training
data asks for. Their licence follows the teacher's.
"""


def _values(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _timm_info(entries: Sequence[Entry]) -> dict[str, Any]:
    split = {
        "name": "train",
        "filenames": [f"train/{entry.shard}.tar" for entry in entries],
        "shard_lengths": [entry.images for entry in entries],
        "num_samples": sum(entry.images for entry in entries),
    }
    return {"name": NAME, "splits": {"train": split}}


def _wids_index(entries: Sequence[Entry]) -> dict[str, Any]:
    return {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": NAME,
        "shardlist": [
            {
                "url": f"train/{entry.shard}.tar",
                "nsamples": entry.images,
                "filesize": entry.size,
                "md5sum": entry.md5,
            }
            for entry in entries
        ],
    }


def _provenance(config: Config, entries: Sequence[Entry], teacher_digest: str) -> dict[str, Any]:
    """An unsigned statement in the shape of SLSA provenance v1 (in-toto)."""
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
                    "synthesis": _synthesis_facts(config),
                    "objective": asdict(config.objective),
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


def _synthesis_facts(config: Config) -> dict[str, Any]:
    """The section ``synthesis``, with the name of the preset where the file says ``auto``."""
    facts = config.synthesis.model_dump(mode="json")
    facts["objective"]["preset"] = config.preset
    return facts


def _weights(teacher: TeacherConfig) -> list[dict[str, Any]]:
    """The file that the teacher's weights were read from, by its own digest."""
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
