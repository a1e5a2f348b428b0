"""Whether a run would make anything, found out from records alone."""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.distillation.job import is_trained
from pipeline.errors import UserError
from pipeline.stages.baselines import baseline_configs
from pipeline.stages.final_students import jobs_of, student_jobs
from pipeline.synthesis.shard_states import survey
from pipeline.teachers.teacher import Teacher


def shards_pending(config: Config, teacher: Teacher, only: range | None = None) -> bool:
    """Whether a planned shard is missing or stale.

    Args:
        config: The parameters.
        teacher: The loaded teacher.
        only: Look only at these shards; None for all.
    """
    planned = range(len(plan_of(config)))
    numbers = planned if only is None else planned[only.start : only.stop]
    return any(found.state != "complete" for found in survey(config, teacher.digest, numbers))


def students_pending(config: Config, teacher: Teacher) -> bool:
    """Whether a final student, or a baseline, is missing or stale.

    An incomplete dataset counts as nothing to train: the stage refuses it with a reason.
    """
    if shards_pending(config, teacher):
        return False
    try:
        jobs = student_jobs(config, teacher)
        for kind, baseline in baseline_configs(config).items():
            if shards_pending(baseline, teacher):
                return True
            jobs += jobs_of(baseline, teacher, kind, config.distillation.seeds[:1])
    except UserError:
        return False
    return not all(map(is_trained, jobs))
