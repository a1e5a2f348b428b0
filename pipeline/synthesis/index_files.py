"""The content of the index files: the card and the indexes that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from pipeline.config.schema import Config
from pipeline.dataset.layout import (
    ALL_ROWS,
    ALL_TARS,
    CAPTION,
    CARD,
    CLASS,
    CROISSANT,
    FACTS,
    LOGITS,
    PROVENANCE,
    SPLIT,
    TAR_SIZES,
    TIMM_INFO,
    VIEWS,
    WIDS_INDEX,
    dataset_names,
    shard_name,
    student_of,
)
from pipeline.dataset.plan import counted_images
from pipeline.dataset.tar import image_kind
from pipeline.storage import digest_bytes, digest_file, exists, json_bytes, location
from pipeline.synthesis.card_text import code_span, plain_text
from pipeline.synthesis.croissant import croissant
from pipeline.synthesis.entries import Entry
from pipeline.synthesis.hugging_face import features
from pipeline.synthesis.provenance import provenance
from pipeline.teachers.networks import public_source
from pipeline.teachers.teacher import Teacher

NAME = "dreamshard"
_NO_WRAPPING = 2**31  # characters in a line of YAML
_AIM = {
    "class": "the label it carries",
    "none": "the BatchNorm statistics of the teacher, together with others",
}


def index_files(config: Config, entries: Sequence[Entry], teacher: Teacher) -> dict[str, bytes]:
    """The name and the content of every index file. No content depends on time or host.

    Args:
        config: all parameters.
        entries: one for each shard, in order.
        teacher: the teacher. Its digest and those of its files of weights are written.
    """
    files = {
        TIMM_INFO: json_bytes(_timm_info(entries)),
        WIDS_INDEX: json_bytes(_wids_index(entries)),
        CROISSANT: json_bytes(croissant(NAME, config, entries)),
        CARD: card(config, entries, teacher.digest).encode(),
    }
    if config.synthesis.captions is not None:
        sizes = {f"{shard_name(entry.number)}.tar": entry.images for entry in entries}
        files[TAR_SIZES] = json_bytes(sizes)
    others = {name: digest_bytes(data) for name, data in files.items()} | _student_digests(config)
    return {**files, PROVENANCE: json_bytes(provenance(config, entries, teacher, others))}


def _student_digests(config: Config) -> dict[str, str]:
    """The digest of each file of the rounds' students, by its name."""
    root = location(config.paths.dataset)
    planned = dataset_names(0, config.adaptive.rounds, captions=False)
    names = sorted(name for name in planned if student_of(name) is not None)
    return {name: digest_file(root / name) for name in names if exists(root / name)}


def card(config: Config, entries: Sequence[Entry], teacher_digest: str) -> str:
    """The dataset card. Its YAML head tells Hugging Face ``datasets`` where the tars are."""
    images, teacher = sum(entry.images for entry in entries), config.teacher
    tasks = {"task_categories": ["image-classification"]} if teacher.labelled else {}
    head = {
        "dataset_info": {"features": features(config)},
        "configs": [{"config_name": "default", "data_files": [{"split": SPLIT, "path": ALL_TARS}]}],
        "license": "other",
        "license_name": "as-the-teacher",
        **tasks,
        "tags": ["synthetic", "deepinversion", "webdataset"],
        "size_categories": [_size_category(images)],
    }
    text = StringIO()
    yaml = YAML()
    yaml.default_flow_style, yaml.width = False, _NO_WRAPPING
    yaml.dump(head, text)
    shape = teacher.input
    resized = ""
    if shape.interpolation:
        resized = f"; real images are resized to it with {plain_text(shape.interpolation)}"
    soft_labels = ""
    if config.synthesis.soft_labels:
        soft_labels = f", `<key>.{LOGITS}` (teacher logits, float16)"
    views = ""
    if config.synthesis.views:
        views = f", `<key>.{VIEWS}` ({config.synthesis.views} stored views, float16)"
    captions = f", `<key>.{CAPTION}` (caption)" if config.synthesis.captions else ""
    label = f", `<key>.{CLASS}` (class index)" if teacher.labelled else ""
    answer = ", and the teacher's answer" if teacher.labelled else ""
    return f"""---
{text.getvalue()}---
# Synthetic images from a trained {"classifier" if teacher.labelled else "network"}

{counted_images(images, teacher.classes)} in {len(entries)} shards, \
{shape.channels} x {shape.height} x {shape.width}. No real image was used: each was optimised \
for {_AIM[teacher.labels]} (DeepInversion, Yin et al., CVPR 2020).

| | |
|---|---|
| teacher | {code_span(public_source(teacher.source))}, sha256 `{teacher_digest[:16]}...` |
| its licence | {plain_text(teacher.license or "not stated by its source")} |
| its input | `(pixel / 255 - mean) / std`, mean {_values(shape.mean)}, std {_values(shape.std)}\
{resized} |
| objective | {code_span(config.preset)}, {config.iterations} iterations |
| adaptive rounds | {config.adaptive.rounds} |
{_confirmed(entries)}
Each sample is `<key>.{image_kind(shape.channels)}`{label} and \
`<key>.{FACTS}`{soft_labels}{captions}{views}. \
`{ALL_ROWS}` has one row an image,
joined by `key`: where it lies, its digest, its seed, every loss term{answer}.
`{PROVENANCE}` names everything that the dataset was made from, by digest.

The images can reveal what the teacher saw in training: treat them with the care that the training
data asks for. Their licence follows the teacher's.
"""


def _confirmed(entries: Sequence[Entry]) -> str:
    """The row of the card about confirmed labels; empty without labels."""
    shares = [(entry.agreement, entry.images) for entry in entries if entry.agreement is not None]
    if not shares:
        return ""
    agreement = sum(share * images for share, images in shares) / sum(n for _, n in shares)
    return f"| label that the teacher confirms | {agreement:.1%} of images |\n"


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


def _size_category(images: int) -> str:
    bounds = [
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
    ]
    return next((name for bound, name in bounds if images < bound), "1M<n<10M")
