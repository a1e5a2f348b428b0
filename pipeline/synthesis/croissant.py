"""The content of ``croissant.json``: the dataset's files and rows in the Croissant format.

Format: https://docs.mlcommons.org/croissant/docs/croissant-spec.html. ``mlcroissant`` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.config.schema import Config
from pipeline.dataset.layout import ALL_ROWS, rows_name, tar_name
from pipeline.dataset.records import SCHEMA
from pipeline.synthesis.entries import Entry
from pipeline.teachers.networks import public_source

_PAPER = "https://arxiv.org/abs/1912.08795"
_TAR, _PARQUET = "application/x-tar", "application/x-parquet"
# fmt: off
_TERMS = (
    "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty",
    "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField",
    "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate",
    "separator", "source", "subField", "transform",
)
# fmt: on
_VOCABULARY = {  # The context that the specification gives, without which readers warn.
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{name: f"cr:{name}" for name in _TERMS},
}


def croissant(name: str, config: Config, entries: Sequence[Entry]) -> dict[str, Any]:
    """The description of a dataset: its files by digest, and its Parquet rows as records.

    The tars are listed as files, but their images are no records: ``mlcroissant`` unpacks a tar
    into a cache that it finds by the tar's path alone, so that two datasets would share one.

    Args:
        name: the name of the dataset.
        config: all parameters.
        entries: one for each shard, in order.
    """
    teacher, images = config.teacher, sum(entry.images for entry in entries)
    kind = "classifier" if teacher.labelled else "network"
    of_classes = f" of {teacher.classes} classes" if teacher.labelled else " without labels"
    return {
        "@context": _VOCABULARY,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": (
            f"{images} synthetic images{of_classes}, made from the {kind} "
            f"{public_source(teacher.source)} by DeepInversion, without real images."
        ),
        "citeAs": f"Yin et al., Dreaming to Distill, CVPR 2020, {_PAPER}",
        "license": teacher.license or "as the teacher's, which its source does not state",
        "url": _PAPER,
        "distribution": [*_files(entries), _row_files()],
        "recordSet": [_rows()],
    }


def _files(entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        digests = dict(entry.digests)
        for name, kind in ((tar_name(entry.number), _TAR), (rows_name(entry.number), _PARQUET)):
            yield {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "encodingFormat": kind,
                "sha256": digests[name],
            }


def _row_files() -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": "row-files",
        "name": "row-files",
        "description": "The Parquet files of all shards.",
        "encodingFormat": _PARQUET,
        "includes": ALL_ROWS,
    }


def _rows() -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "rows",
        "name": "rows",
        "description": "One record an image: its label, where it lies, its seed and losses.",
        "key": {"@id": "rows/key"},
        "field": [_field(column) for column in SCHEMA if not _is_digest(column.type)],
    }


def _field(column: pa.Field) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"rows/{column.name}",
        "name": column.name,
        "description": column.metadata[b"description"].decode(),
        "dataType": _data_type(column.type),
        "source": {"fileSet": {"@id": "row-files"}, "extract": {"column": column.name}},
    }


def _is_digest(kind: pa.DataType) -> bool:
    """Croissant has no type for raw bytes, such as the digest of an image."""
    return bool(pa.types.is_fixed_size_binary(kind))


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"
