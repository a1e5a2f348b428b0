"""The student that an adaptive round competes with, trained where it is missing."""

from __future__ import annotations

import logging
from dataclasses import replace

from pipeline.config.schema import Config
from pipeline.dataset.held_lock import Lock
from pipeline.distillation.job import is_trained, remove_checkpoint
from pipeline.distillation.train_student import distill
from pipeline.execution.runner import Runner
from pipeline.storage import digest_file
from pipeline.synthesis.job import Competitor
from pipeline.synthesis.round_students import round_job

log = logging.getLogger(__name__)


def competitor_of(
    config: Config, teacher_digest: str, round_: int, run: Runner, lock: Lock
) -> Competitor:
    """The student of the round, trained now if it is missing or stale."""
    job = replace(round_job(config, teacher_digest, round_), lock=lock)
    if not is_trained(job):
        given, used = config.adaptive.training.batch_size, job.training.batch_size
        if used < given:
            log.warning(
                "adaptive.training.batch_size is %d, but round %d follows %d images: each step of "
                "its student takes all of them",
                given,
                round_,
                used,
            )
        run(distill, [job], f"student of round {round_}")
    else:
        remove_checkpoint(job.checkpoint)  # of a stopped run with other parameters
    return Competitor(job.output, digest_file(job.output))
