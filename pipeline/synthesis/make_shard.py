"""Make one shard: optimise its images batch by batch, then publish them."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from pipeline.dataset.plan import Batch, ShardPlan, plan_of
from pipeline.dataset.run_markers import marked
from pipeline.execution.shown_loss import show_loss
from pipeline.inversion.batch_parts import Report, invert_in_parts
from pipeline.inversion.engine import Engine
from pipeline.inversion.selection import Kept, Rules, invert_surely
from pipeline.inversion.warm_start import Pool, earlier_pool
from pipeline.storage import location
from pipeline.synthesis.engine_cache import engine_of
from pipeline.synthesis.job import Made, ShardJob, is_done
from pipeline.synthesis.publish_shard import publish_shard
from pipeline.synthesis.stored_views import Half, draw_views, store_views


def make_shard(job: ShardJob, device: str, report: Report) -> Made:
    """Make one shard. A stale one is replaced.

    Args:
        job: the shard, and all parameters.
        device: where to compute, such as ``cpu`` or ``cuda:0``.
        report: called with the number of images made since its last call, which may be a fraction.
    """
    started = time.perf_counter()
    if is_done(job):  # a worker that seemed lost has made it, or another run
        return Made(job.number, job.images, 0.0)
    config, shard = job.config, plan_of(job.config).shard(job.number)
    with marked(location(config.paths.dataset), job.number) as alive:

        def report_alive(images: float) -> None:
            alive()
            report(images)

        with engine_of(job, device) as engine:
            batches: list[tuple[Batch, Kept]] = []
            pool = _pool(job, shard)
            for batch in shard.batches:
                earlier = [kept.images.pixels for _, kept in batches]
                batches += invert_batch(job, shard, batch, earlier, pool, engine, report_alive)
                show_loss(batches[-1][1].images.curve[-1]["total"])
            views = _views(job, shard, batches, engine)
        publish_shard(job, shard, batches, engine.precision, engine.teacher.parts, views)
    return Made(job.number, job.images, time.perf_counter() - started)


def _views(
    job: ShardJob, shard: ShardPlan, batches: list[tuple[Batch, Kept]], engine: Engine
) -> Half | None:
    """The stored views of the finished images, or None for a dataset without them."""
    if not job.config.synthesis.views:
        return None
    pixels = torch.cat([kept.images.pixels for _, kept in batches])
    return store_views(engine, pixels, draw_views(job.config, shard))


def _pool(job: ShardJob, shard: ShardPlan) -> Pool | None:
    """The earlier images that the images of an adaptive round start from.

    The spec does not name them. It holds the digest of the round's student, which was trained on
    all earlier shards, so other earlier images give another spec.
    """
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
    """Optimise one batch, in parts where the memory does not hold all of it."""
    start, synthesis = sum(map(len, earlier)), job.config.synthesis
    iterations = job.config.iterations
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
            iterations,
            rules,
            part.candidates,
            [*earlier, *(kept.images.pixels for kept in before)],
            progress=lambda steps: tell(part.size * steps / iterations),
            pool=pool,
        )

    return invert_in_parts(engine, batch, labels, make, report)
