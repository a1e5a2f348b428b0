"""Invert the images of a plan without writing a dataset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.dataset.plan import Batch, plan_of
from pipeline.device.threads import use_threads
from pipeline.inversion.batch_parts import Report
from pipeline.inversion.engine import Engine
from pipeline.inversion.selection import Kept
from pipeline.synthesis.job import ShardJob
from pipeline.synthesis.make_shard import invert_batch
from pipeline.synthesis.spec import round_objective
from pipeline.teachers.teacher import cached_teacher


@dataclass(frozen=True, slots=True)
class InversionJob:
    """Images to invert in this process, without a dataset."""

    config: Config
    teacher_digest: str
    images: int

    def __str__(self) -> str:
        return "inversion"


def invert_job(job: InversionJob, device: str, report: Report) -> tuple[Tensor, Tensor, Tensor]:
    """The images, labels and logits of a plan, as :func:`make_shard` would publish them."""
    config, synthesis = job.config, job.config.synthesis
    use_threads(synthesis.threads)
    teacher = cached_teacher(config.teacher.model_dump_json(), job.teacher_digest, device)
    engine = Engine(
        teacher,
        round_objective(config, 0),
        synthesis.precision,
        config.compiled,
        checkpointing=synthesis.checkpointing,
    )
    planned = plan_of(config)
    images: list[Tensor] = []
    logits: list[Tensor] = []
    with engine:
        for shard in planned:
            shard_job = ShardJob(config, shard.number, {}, None, len(shard.labels))
            made: list[tuple[Batch, Kept]] = []
            for batch in shard.batches:
                earlier = [kept.images.pixels for _, kept in made]
                made += invert_batch(shard_job, shard, batch, earlier, None, engine, report)
            images += [kept.images.pixels for _, kept in made]
            logits += [kept.images.logits for _, kept in made]
    labels = torch.from_numpy(planned.labels.astype(np.int64))
    return torch.cat(images), labels, torch.cat(logits)
