"""Publish one shard: write its tar, its Parquet rows and, last, its record."""

from __future__ import annotations

import hashlib
import io
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.layout import Layout, rows_name, tar_name
from pipeline.dataset.plan import Batch, ShardPlan
from pipeline.dataset.record_files import read_record
from pipeline.dataset.records import ShardRecord, TeacherParts, encode_rows, versions
from pipeline.dataset.tar import write_tar
from pipeline.device.precision import Precision
from pipeline.errors import TryAgainError
from pipeline.inversion.selection import Kept, flaw_counts
from pipeline.storage import (
    Location,
    digest_file,
    digest_json,
    exists,
    location,
    remove,
    replacing,
    write_bytes,
    write_json,
)
from pipeline.synthesis.job import ShardJob, is_done
from pipeline.synthesis.rows import (
    class_counts,
    mean_answers,
    mean_curve,
    rows_of,
    samples_of,
)
from pipeline.synthesis.spec import row_facts


def publish_shard(
    job: ShardJob,
    shard: ShardPlan,
    batches: list[tuple[Batch, Kept]],
    precision: Precision,
    teacher: TeacherParts,
    views: NDArray[np.float16] | None = None,
) -> None:
    """Write the tar, then the rows, then the record, which makes the shard complete.

    Args:
        job: the job of the shard.
        shard: its plan.
        batches: the batches that were optimised together, with the images that were kept.
        precision: the number format in which the networks computed.
        teacher: the parts of the teacher.
        views: the stored views of each image, if the dataset has them.

    Raises:
        TryAgainError: another run wrote to the dataset meanwhile. The shard is not complete.
    """
    if is_done(job):  # another run was faster
        return
    if job.lock is not None:
        job.lock.check()
    root = location(job.config.paths.dataset)
    record_path = Layout(root).record(shard.number)
    remove(record_path)  # from here on the shard is not complete
    tar, parquet = tar_name(shard.number), rows_name(shard.number)
    rows = list(rows_of(job, shard, batches))
    synthesis = job.config.synthesis
    samples = samples_of(rows, batches, synthesis.soft_labels, synthesis.captions, views)
    with replacing(root / tar) as file:
        members = write_tar(file, samples)
        tar_facts = file_facts(file)
    for row, member in zip(rows, members, strict=True):
        row["offset"], row["size"] = member.offset, member.size
        row["sha256"] = bytes.fromhex(member.sha256)
    labelled = job.config.teacher.labelled
    encoded = encode_rows(rows, row_facts(job.config, job.spec), labelled)
    write_bytes(root / parquet, encoded)
    record = ShardRecord.of(
        shard=shard.name,
        round=shard.round,
        first=shard.first,
        images=len(rows),
        spec=job.spec,
        spec_sha256=digest_json(job.spec),
        files={tar: tar_facts, parquet: file_facts(io.BytesIO(encoded))},
        class_counts=class_counts(shard) if labelled else {},
        batches=[batch.size for batch, _ in batches],
        precision=precision,
        **mean_answers(rows),
        replaced=flaw_counts(kept.replaced for _, kept in batches),
        flaws=flaw_counts(kept.flaws for _, kept in batches),
        curve=mean_curve(batches, labelled),
        versions=versions(),
        teacher_parts=dict(teacher),
    )
    write_json(record_path, record.to_json())
    _check_files(root, record)


def _check_files(root: Location, record: ShardRecord) -> None:
    """Make sure that a record names the files that are in the dataset, and not another run's.

    Raises:
        TryAgainError: a file has other bytes. The record is deleted.
    """
    for name, facts in record.files.items():
        if not exists(root / name) or digest_file(root / name) != facts["sha256"]:
            path = Layout(root).record(int(record.shard))
            found = read_record(path)
            if found is not None and found.sha256 == record.sha256:
                remove(path)
            raise TryAgainError(
                f"{root / name} was replaced by another run while shard {record.shard} was "
                "written: stop the other run, then run this command again"
            )


def file_facts(file: IO[bytes]) -> dict[str, Any]:
    """The digests and the size in bytes of a file, as the record of a shard holds them."""
    digests = {}
    for algorithm in ("sha256", "md5"):
        file.seek(0)
        digests[algorithm] = hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]
    return {**digests, "size": file.seek(0, io.SEEK_END)}
