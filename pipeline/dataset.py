"""The dataset as a whole: the index files, card and provenance that its consumers look for."""

from __future__ import annotations

import platform
import re
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from pipeline.config import Config, TeacherConfig
from pipeline.errors import UserError
from pipeline.provenance import ShardRecord, read_record
from pipeline.shards import image_kind
from pipeline.sources import public_source, weights_file
from pipeline.storage import digest_file, json_bytes, write_bytes
from pipeline.synthesis import plan_of, record_path, teacher_facts
from pipeline.teacher import Teacher

NAME = "dreamshard"
_SHARD_FILE = re.compile(r"(\d{6,})\.(tar|parquet|json)")
_STUDENT_FILE = re.compile(r"(\d{6})\.(safetensors|json|csv|checkpoint)")
_PACKAGES = ("torch", "numpy", "pillow", "pyarrow", "webdataset")


def claim(root: Path) -> None:
    """Make sure that ``root`` is a dataset of ours, or empty and from now on one.

    Raises:
        UserError: something else is there, which must not be pruned.
    """
    if (root / "metadata").is_dir():
        return
    others = sorted(path.name for path in root.iterdir() if path.name != ".gitkeep")
    if others:
        raise UserError(
            f"paths.dataset {root} holds other files ({others[0]}): name an empty or new directory"
        )
    (root / "metadata").mkdir()


def prune(config: Config) -> None:
    """Remove the shards and students that the plan does not have."""
    root, planned = Path(config.paths.dataset), len(plan_of(config))
    for folder in ("metadata", "train"):  # records first: what is left is never taken as complete
        for path in sorted((root / folder).glob("*")):
            match = _SHARD_FILE.fullmatch(path.name)
            if match and int(match[1]) >= planned:
                path.unlink()
    for path in sorted((root / "students").glob("*")):
        match = _STUDENT_FILE.fullmatch(path.name)
        if match and int(match[1]) > config.adaptive.rounds:
            path.unlink()
    if (root / "students").is_dir() and not any((root / "students").iterdir()):
        (root / "students").rmdir()


def finalise(config: Config, teacher: Teacher) -> None:
    """Write the dataset-level files from the records of all shards."""
    root = Path(config.paths.dataset)
    for path, data in dataset_files(config, read_records(config), teacher.digest).items():
        if not (root / path).is_file() or (root / path).read_bytes() != data:
            write_bytes(root / path, data)
    for leftover in root.rglob(".*.tmp"):  # of killed runs; nothing is being written any more
        leftover.unlink(missing_ok=True)


def read_records(config: Config) -> list[ShardRecord]:
    """The records of all planned shards, which must be there."""
    root = Path(config.paths.dataset)
    records = [read_record(record_path(root, n)) for n in range(len(plan_of(config)))]
    return [record for record in records if record is not None]


def dataset_files(
    config: Config, records: list[ShardRecord], teacher_digest: str
) -> dict[str, bytes]:
    """Path below the dataset to content. Nothing in them depends on time or host."""
    return {
        "_info.json": json_bytes(_timm_info(records)),
        "index.json": json_bytes(_wids_index(records)),
        "train/sizes.json": json_bytes({f"{r.shard}.tar": r.images for r in records}),
        "README.md": card(config, records, teacher_digest).encode(),
        "provenance.json": json_bytes(_provenance(config, records, teacher_digest)),
    }


def card(config: Config, records: list[ShardRecord], teacher_digest: str) -> str:
    """The dataset card; its YAML head tells Hugging Face ``datasets`` where the tars are."""
    images = sum(record.images for record in records)
    agreement = sum(record.agreement * record.images for record in records) / images
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

{images} images of {config.teacher.classes} classes in {len(records)} shards, \
{shape.channels} x {shape.height} x {shape.width}. No real image was used: each was optimised \
until the teacher gave it the label it carries (DeepInversion, Yin et al., CVPR 2020).

| | |
|---|---|
| teacher | `{public_source(config.teacher.source)}`, sha256 `{teacher_digest[:16]}...` |
| its licence | {config.teacher.license or "not stated by its source"} |
| its input | `(pixel / 255 - mean) / std`, mean {_values(shape.mean)}, std {_values(shape.std)} |
| objective | `{config.synthesis.objective.preset}`, {config.synthesis.iterations} iterations |
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


def _timm_info(records: list[ShardRecord]) -> dict[str, Any]:
    split = {
        "name": "train",
        "filenames": [f"train/{record.shard}.tar" for record in records],
        "shard_lengths": [record.images for record in records],
        "num_samples": sum(record.images for record in records),
    }
    return {"name": NAME, "splits": {"train": split}}


def _wids_index(records: list[ShardRecord]) -> dict[str, Any]:
    return {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": NAME,
        "shardlist": [
            {
                "url": f"train/{record.shard}.tar",
                "nsamples": record.images,
                "filesize": record.tar["size"],
                "md5sum": record.tar["md5"],
            }
            for record in records
        ],
    }


def _provenance(config: Config, records: list[ShardRecord], teacher_digest: str) -> dict[str, Any]:
    """An unsigned statement in the shape of SLSA provenance v1 (in-toto)."""
    inputs = [
        {
            "name": "teacher",
            "uri": public_source(config.teacher.source),
            "digest": {"sha256": teacher_digest},
        },
        *_weights(config.teacher),
    ]
    students = sorted({str(record.spec["student"]) for record in records if record.spec["student"]})
    inputs += [
        {
            "name": "student",
            "uri": public_source(config.student.source),
            "digest": {"sha256": digest},
        }
        for digest in students
    ]
    root = Path(config.paths.dataset)
    subjects = [
        {"name": name, "digest": {"sha256": facts["sha256"]}}
        for record in records
        for name, facts in sorted(record.files.items())
    ] + [
        {
            "name": f"metadata/{record.shard}.json",
            "digest": {"sha256": digest_file(root / "metadata" / f"{record.shard}.json")},
        }
        for record in records
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
                    "code": records[0].spec["code"],
                    "python": platform.python_version(),
                    "packages": {name: version(name) for name in _PACKAGES},
                },
            },
            "runDetails": {"builder": {"id": NAME}},
        },
    }


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
