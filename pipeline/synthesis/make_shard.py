"""Make one shard: invert its batches, write the tar, the rows and the record."""

from __future__ import annotations

import hashlib
import io
import time
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.dataset.layout import record_path
from pipeline.dataset.plan import Batch, ShardPlan, plan_of
from pipeline.dataset.records import ShardRecord, encode_rows, versions
from pipeline.dataset.run_markers import marked
from pipeline.dataset.tar import write_tar
from pipeline.device.precision import Precision
from pipeline.device.threads import use_threads
from pipeline.inversion.batch_parts import Report, invert_in_parts
from pipeline.inversion.engine import Engine
from pipeline.inversion.selection import Kept, Rules, flaw_counts, invert_surely
from pipeline.inversion.warm_start import Pool, earlier_pool
from pipeline.storage import (
    Location,
    digest_json,
    location,
    remove,
    replacing,
    write_bytes,
    write_json,
)
from pipeline.synthesis.engine_cache import engine_of
from pipeline.synthesis.job import Made, ShardJob, is_done
from pipeline.synthesis.rows import class_counts, mean_curve, rows_of, samples_of
from pipeline.synthesis.spec import teacher_facts


def make_shard(job: ShardJob, device: str, report: Report) -> Made:
    """Make one shard: tar, then rows, then the record. Overwrites a stale one.

    ``report`` is told of progress in images; a batch of ``n`` adds up to ``n``.
    """
    started = time.perf_counter()
    if is_done(job):  # by a worker that was given up for lost, or by a run of other shards
        return Made(job.number, job.images, 0.0)
    config, shard = job.config, plan_of(job.config).shard(job.number)
    root = location(config.paths.dataset)
    use_threads(config.synthesis.threads)
    with marked(root, job.number) as alive:

        def told(images: float) -> None:
            alive()
            report(images)

        with engine_of(job, device) as engine:
            batches: list[tuple[Batch, Kept]] = []
            pool = _pool(job, shard)
            for batch in shard.batches:
                earlier = [kept.images.pixels for _, kept in batches]
                batches += invert_batch(job, shard, batch, earlier, pool, engine, told)
        _publish(job, shard, batches, engine.precision, root)
    return Made(job.number, job.images, time.perf_counter() - started)


def _pool(job: ShardJob, shard: ShardPlan) -> Pool | None:
    """What the images of an adaptive round start from. That it is always the same follows from the
    digest of the student, which learnt from all earlier shards."""
    share = job.config.adaptive.warm
    if not (shard.round and share):
        return None
    before = plan_of(job.config).of_round(shard.round).start
    return earlier_pool(location(job.config.paths.dataset), shard.number, before, share)


def invert_batch(
    job: ShardJob,
    shard: ShardPlan,
    batch: Batch,
    earlier: list[Tensor],
    pool: Pool | None,
    engine: Engine,
    report: Report,
) -> list[tuple[Batch, Kept]]:
    """Invert one batch of a shard; ``earlier`` are the pixels of the batches before it."""
    start, synthesis = sum(map(len, earlier)), job.config.synthesis
    labels = torch.from_numpy(shard.labels[start : start + batch.size].astype(np.int64))
    rules = Rules(
        attempts=synthesis.attempts,
        min_confidence=synthesis.min_confidence,
        confirmed=synthesis.confirmed,
        max_similarity=synthesis.max_similarity,
    )

    def make(part: Batch, of_part: Tensor, before: list[Kept], tell: Report) -> Kept:
        return invert_surely(
            engine,
            of_part,
            part.seed,
            synthesis.iterations,
            rules,
            part.candidates,
            [*earlier, *(kept.images.pixels for kept in before)],
            progress=lambda steps: tell(part.size * steps / synthesis.iterations),
            pool=pool,
        )

    return invert_in_parts(engine, batch, labels, make, report)


def _publish(
    job: ShardJob,
    shard: ShardPlan,
    batches: list[tuple[Batch, Kept]],
    precision: Precision,
    root: Location,
) -> None:
    if is_done(job):  # another run was faster, and what it wrote is whole
        return
    remove(record_path(root, shard.number))  # from here on it is not complete
    tar, parquet = f"train/{shard.name}.tar", f"metadata/{shard.name}.parquet"
    rows = list(rows_of(job, shard, batches))
    samples = samples_of(rows, batches, job.config.synthesis.soft_labels)
    with replacing(root / tar) as file:
        members = write_tar(file, samples)
        tar_facts = file_facts(file)
    for row, member in zip(rows, members, strict=True):
        row["offset"], row["size"] = member.offset, member.size
        row["sha256"] = bytes.fromhex(member.sha256)
    facts = teacher_facts(job.config)
    del facts["license"], facts["input"]["interpolation"]  # they may change and leave the shard
    encoded = encode_rows(rows, {"spec": job.spec, "teacher": facts})
    write_bytes(root / parquet, encoded)
    agree = [row["teacher_pred"] == row["cls"] for row in rows]
    record = ShardRecord.of(
        shard=shard.name,
        round=shard.round,
        first=shard.first,
        images=len(rows),
        spec=job.spec,
        spec_sha256=digest_json(job.spec),
        files={tar: tar_facts, parquet: file_facts(io.BytesIO(encoded))},
        class_counts=class_counts(shard),
        batches=[batch.size for batch, _ in batches],
        precision=precision,
        agreement=round(sum(agree) / len(agree), 6),
        confidence=round(sum(row["teacher_prob"] for row in rows) / len(rows), 6),
        replaced=flaw_counts(kept.replaced for _, kept in batches),
        flaws=flaw_counts(kept.flaws for _, kept in batches),
        curve=mean_curve(batches),
        versions=versions(),
    )
    write_json(record_path(root, shard.number), record.to_json())


def file_facts(file: IO[bytes]) -> dict[str, Any]:
    """Digests and size, as the record and the dataset's index files name them."""
    digests = {}
    for algorithm in ("sha256", "md5"):
        file.seek(0)
        digests[algorithm] = hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]
    return {**digests, "size": file.seek(0, io.SEEK_END)}
