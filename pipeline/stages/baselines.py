"""The datasets that the synthetic one has to beat: noise, and procedural pictures.

A baseline is a dataset of as many images, made with 0 iterations, and one student of it.
"""

from __future__ import annotations

from typing import Any

from pipeline.config.distillation import NOISE, PROCEDURAL
from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.execution.runner import Runner
from pipeline.stages.synthesize import synthesize
from pipeline.storage import location
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher

DRAWS = 20  # procedural pictures that are drawn for each one that the teacher selects


def baseline_config(config: Config, kind: str) -> Config:
    """The parameters of a baseline's dataset, in the folder ``paths.dataset`` with ``-kind``.

    Args:
        config: All parameters.
        kind: ``noise``: white noise with the mean and std of ``teacher.input``, if they seem
            measured on data. ``procedural``: pictures of random textures and shapes, of which the
            teacher selects as many as each class needs.
    """
    dataset = location(config.paths.dataset)
    objective = config.synthesis.objective.model_copy(update=_start(config, kind))
    update = {"iterations": 0, "objective": objective, "images": len(plan_of(config).labels)}
    # All images are kept: no rule applies to them.
    update |= {"images_per_class": None, "keep": 1.0}
    update |= {"min_confidence": 0.0, "confirmed": False, "max_similarity": None}
    training = config.distillation
    if kind == NOISE:  # the student of noise sees nothing else
        training = training.model_copy(update={"procedural": 0.0})
    return config.model_copy(
        update={
            "distillation": training,
            "synthesis": config.synthesis.model_copy(update=update),
            "adaptive": config.adaptive.model_copy(update={"rounds": 0}),
            "paths": config.paths.model_copy(
                update={"dataset": str(dataset.with_name(f"{dataset.name}-{kind}"))}
            ),
        }
    )


def _start(config: Config, kind: str) -> dict[str, Any]:
    if kind == PROCEDURAL:
        return {"start": "procedural", "draws": DRAWS, "units": "image"}
    known = bool(Preprocessing.of(config.teacher.input).measured().all())
    return {"start": "white", "draws": 1, "units": "teacher" if known else "image"}


def baseline_configs(config: Config) -> dict[str, Config]:
    """The parameters of each baseline that ``distillation`` asks for, by its name."""
    return {kind: baseline_config(config, kind) for kind in config.distillation.baselines}


def make_baseline(kind: str, config: Config, teacher: Teacher, run: Runner) -> None:
    """Make the images of a baseline that are missing or stale."""
    synthesize(config, teacher, lambda work, jobs, text: run(work, jobs, f"{kind}, {text}"))
