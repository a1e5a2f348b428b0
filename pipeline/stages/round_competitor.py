"""The student that an adaptive round competes with, trained where it is missing."""

from __future__ import annotations

import logging

from pipeline.config.schema import Config
from pipeline.distillation.job import is_trained
from pipeline.distillation.train_student import distill
from pipeline.execution.runner import Runner
from pipeline.storage import digest_file, remove
from pipeline.synthesis.job import Competitor
from pipeline.synthesis.round_students import round_job

log = logging.getLogger(__name__)


def competitor_of(config: Config, teacher_digest: str, round_: int, run: Runner) -> Competitor:
    """The student of the round, trained now if it is missing or stale."""
    job = round_job(config, teacher_digest, round_)
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
        remove(job.checkpoint)  # of a stopped run with other parameters
    return Competitor(job.output, digest_file(job.output))
