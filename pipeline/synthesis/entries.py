"""The facts of each shard that the index files contain."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.dataset.layout import record_name, tar_name
from pipeline.dataset.records import ShardRecord
from pipeline.storage import digest_bytes
from pipeline.synthesis.shard_states import Found


@dataclass(frozen=True, slots=True)
class Entry:
    """The facts of a shard that the index files contain. There may be very many entries.

    Attributes:
        number: the number of the shard.
        images: the number of its images.
        agreement: the share of images to which the teacher gives the intended class; None without
            labels.
        size: of the tar, in bytes.
        md5: of the tar.
        digests: the name and the SHA-256 of each file, the record last.
        student: the digest of the student that its round competed with, or None.
        code: the digest of the code that made it.
        versions: of Python and the packages, as JSON. Most shards share one string.
    """

    number: int
    images: int
    agreement: float | None
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
