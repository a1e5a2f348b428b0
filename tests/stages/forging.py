"""Forge the files of a dataset, with digests that fit, as somebody would who knows how."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.tar import Sample, decode_image, read_tar, write_tar
from pipeline.storage import digest_bytes, json_bytes, write_json
from pipeline.synthesis.publish_shard import file_facts


def seal(root: Path, number: int, **changes: Any) -> None:
    """Write a shard's record anew, as a forger would who knows how."""
    path = root / "metadata" / f"{number:06d}.json"
    facts = {**json.loads(path.read_bytes()), **changes}
    del facts["sha256"]
    write_json(path, {**facts, "sha256": digest_bytes(json_bytes(facts))})


def rewrite_record(root: Path, number: int) -> None:
    """Make the record of a forged shard fit its files again."""
    names = (f"train/{number:06d}.tar", f"metadata/{number:06d}.parquet")
    seal(
        root,
        number,
        files={name: file_facts(io.BytesIO((root / name).read_bytes())) for name in names},
    )


def samples_of(root: Path, number: int) -> list[Sample]:
    return [
        Sample(
            key=key,
            pixels=decode_image(parts["png"]),
            label=int(parts["cls"]),
            facts=json.loads(parts["json"]),
            caption=parts["txt"].decode() if "txt" in parts else None,
        )
        for key, parts, _ in read_tar(root / "train" / f"{number:06d}.tar")
    ]


def rewrite_tar(root: Path, number: int, samples: list[Sample]) -> None:
    with (root / "train" / f"{number:06d}.tar").open("w+b") as file:
        write_tar(file, iter(samples))


def rewrite_rows(root: Path, number: int, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the rows of a shard, and make its record fit them."""
    path = root / "metadata" / f"{number:06d}.parquet"
    schema, rows = pq.read_schema(path), pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
    rewrite_record(root, number)
