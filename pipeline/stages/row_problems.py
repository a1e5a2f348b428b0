"""Compare the rows and samples of a shard with its plan, its tar and its parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import Config
from pipeline.dataset.layout import CAPTION, CLASS, FACTS, LOGITS, PNG, VIEWS
from pipeline.dataset.plan import Batch, ShardPlan, derive_seed
from pipeline.dataset.png_chunks import foreign_chunk
from pipeline.dataset.records import LABEL_COLUMNS
from pipeline.dataset.row_files import Row
from pipeline.dataset.tar import image_kind, image_part
from pipeline.inversion.selection import Flaw
from pipeline.storage import digest_bytes, digest_json
from pipeline.synthesis.rows import caption, facts_of_row
from pipeline.synthesis.spec import row_facts

Samples = Sequence[tuple[str, dict[str, bytes], int]]


@dataclass(frozen=True, slots=True)
class ShardContent:
    """A shard as it was read, and what it was planned to be.

    Attributes:
        config: all parameters.
        shard: the plan of the shard.
        batches: the batches that were optimised together, in the order of their images.
        samples: the key, the members and the offset of the image of each sample.
        rows: the row of each sample.
        facts: the facts in the metadata of the rows' file.
        spec: the spec of the shard.
    """

    config: Config
    shard: ShardPlan
    batches: Sequence[Batch]
    samples: Samples
    rows: Sequence[Row]
    facts: dict[str, Any]
    spec: dict[str, Any]


def sample_problems(content: ShardContent) -> Iterator[str]:
    """The first sample whose members are not those that its row gives."""
    members = {FACTS, image_kind(content.config.teacher.input.channels)}
    if content.config.teacher.labelled:
        members.add(CLASS)
    if content.config.synthesis.soft_labels:
        members.add(LOGITS)
    if content.config.synthesis.captions is not None:
        members.add(CAPTION)
    if content.config.synthesis.views:
        members.add(VIEWS)
    for (key, parts, _), row in zip(content.samples, content.rows, strict=True):
        if set(parts) != members:
            yield f"sample {key} has the members {sorted(parts)}, not {sorted(members)}"
            return
        facts = json.dumps(facts_of_row(row), sort_keys=True).encode()
        for member, expected in ((CLASS, str(row["cls"]).encode()), (FACTS, facts)):
            if member in members and parts[member] != expected:
                yield f"sample {key} differs from its row: its .{member} says something else"
                return
        extra = foreign_chunk(parts[PNG]) if PNG in parts else None
        if extra:
            yield f"sample {key}: its .{PNG} holds {extra}"
            return


def row_problems(content: ShardContent) -> Iterator[str]:
    """Each column that follows from the plan, the tar and the parameters, where a row differs."""
    if digest_json(content.facts) != digest_json(row_facts(content.config, content.spec)):
        yield "the metadata of its rows names another spec or another teacher"
    for column, expected in _derived_columns(content).items():
        for row, value in zip(content.rows, expected, strict=True):
            if row[column] != value:
                yield (
                    f"sample {row['key']} differs from its row: {column} is "
                    f"{ascii(row[column])[:60]}, not {ascii(value)[:60]}"
                )
                break
    attempts = content.config.synthesis.attempts
    checks: tuple[tuple[str, Callable[[Row], bool]], ...] = (
        ("attempt", lambda row: 0 <= row["attempt"] < attempts),
        ("replaced", lambda row: _replaced_fits(row)),
        ("flaw", lambda row: _flaw_fits(row, content.config)),
        ("teacher_prob", lambda row: _sure_enough(row, content.config)),
    )
    for column, fits in checks:
        for row in content.rows:
            if not fits(row):
                yield f"sample {row['key']}: {column} cannot be {ascii(row[column])[:60]}"
                break


def _derived_columns(content: ShardContent) -> dict[str, list[Any]]:
    """The columns that follow exactly, one value for each row."""
    config, shard = content.config, content.shard
    labels, names, shape = shard.labels.tolist(), config.teacher.class_names, config.teacher.input
    images = [image_part(parts) for _, parts, _ in content.samples]
    numbers = [number for number, batch in enumerate(content.batches) for _ in range(batch.size)]
    columns: dict[str, list[Any]] = {
        "index": list(range(len(labels))),
        "cls": labels,
        "class_name": [names[label] if names else str(label) for label in labels],
        "offset": [offset for _, _, offset in content.samples],
        "size": [len(image) for image in images],
        "sha256": [bytes.fromhex(digest_bytes(image)) for image in images],
        "batch": numbers,
        "seed": [
            seed_of(content.batches[number], row["attempt"])
            for number, row in zip(numbers, content.rows, strict=True)
        ],
    }
    if not config.teacher.labelled:
        columns |= {name: [None] * len(labels) for name in LABEL_COLUMNS}
    constants = {
        "shard": f"{shard.name}.tar",
        "round": shard.round,
        "iterations": config.iterations,
        "height": shape.height,
        "width": shape.width,
    }
    return columns | {name: [value] * len(labels) for name, value in constants.items()}


def seed_of(batch: Batch, attempt: int) -> int:
    """The seed of an attempt at a batch."""
    return derive_seed(batch.seed, attempt) if attempt else batch.seed


def _replaced_fits(row: Row) -> bool:
    """Only an image of a later attempt replaced a flawed one."""
    words = {flaw.word for flaw in Flaw}
    return row["replaced"] in words and (row["replaced"] is not None) == (row["attempt"] > 0)


def _flaw_fits(row: Row, config: Config) -> bool:
    """Unsure and diverged images are not published; the other flaws follow from the parameters."""
    synthesis = config.synthesis
    unconfirmed = synthesis.confirmed and row["teacher_pred"] != row["cls"]
    if unconfirmed or row["flaw"] == Flaw.UNCONFIRMED.word:
        return unconfirmed and row["flaw"] == Flaw.UNCONFIRMED.word
    return row["flaw"] is None or (
        row["flaw"] == Flaw.DUPLICATE.word and synthesis.max_similarity is not None
    )


def _sure_enough(row: Row, config: Config) -> bool:
    if not config.teacher.labelled:
        return row["teacher_prob"] is None
    return bool(row["teacher_prob"] >= config.synthesis.min_confidence - 1e-6)


def caption_problems(content: ShardContent) -> Iterator[str]:
    """The first sample without the caption of its class, or with a caption too many."""
    template = content.spec["captions"]
    for (key, parts, _), row in zip(content.samples, content.rows, strict=True):
        expected = caption(template, row["class_name"])
        if parts.get(CAPTION) != (None if expected is None else expected.encode()):
            yield f"sample {key} has another caption than synthesis.captions asks for"
            return
