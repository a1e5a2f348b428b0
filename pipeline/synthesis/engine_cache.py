"""The inversion engine, which a worker keeps for all shards of a round."""

from __future__ import annotations

import functools

from pipeline.config.student import StudentConfig
from pipeline.device.precision import PrecisionChoice
from pipeline.device.threads import use_threads
from pipeline.errors import TryAgainError
from pipeline.inversion.engine import Engine
from pipeline.objective.presets import Objective
from pipeline.synthesis.job import Competitor, ShardJob
from pipeline.synthesis.spec import round_objective
from pipeline.teachers import networks
from pipeline.teachers.teacher import Teacher, cached_teacher


def engine_of(job: ShardJob, device: str) -> Engine:
    """The engine of the shard's round, and ``synthesis.threads`` threads to run it with.

    A worker compiles the engine once and keeps it.

    Raises:
        TryAgainError: the teacher or the student changed since the run began.
    """
    config, competitor = job.config, job.competitor
    use_threads(config.synthesis.threads)
    loaded = cached_teacher(config.teacher.model_dump_json(), job.spec["teacher"], device)
    return _cached_engine(
        loaded,
        round_objective(config, job.spec["round"]),
        config.synthesis.precision,
        config.compiled,
        config.synthesis.checkpointing,
        config.student.model_dump_json() if competitor else "",
        competitor,
    )


@functools.lru_cache(maxsize=1)
def _cached_engine(
    loaded: Teacher,
    weights: Objective,
    precision: PrecisionChoice,
    compiled: bool,
    checkpointing: bool,
    section: str,
    competitor: Competitor | None,
) -> Engine:
    student = None
    if competitor is not None:
        architecture = StudentConfig.model_validate_json(section)
        student = networks.build_network(architecture.source, architecture.arguments, "student")
        loaded_weights = networks.load_weights(student, competitor.weights, "student")
        if loaded_weights.files[0].sha256 != competitor.sha256:
            raise TryAgainError(
                f"the student {competitor.weights} changed since the round began, because another "
                "run trained it again: run the same command again"
            )
        student.eval().requires_grad_(False).to(loaded.device)
    return Engine(loaded, weights, precision, compiled, student, checkpointing)
