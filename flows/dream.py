"""The flow ``dream``: synthesis, distillation, evaluation and measures in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefect import flow

from flows.artifacts import name_run
from flows.distill import train_students
from flows.judgement import judge
from flows.running import run_as_flow
from flows.settings import AS_IN_FILE, Settings
from flows.synthesize import make_shards
from pipeline.config.schema import Config
from pipeline.evaluation.inputs import check_evaluation
from pipeline.params import load_command_params
from pipeline.stages.distillation_check import check_distillation
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.teacher import Teacher


@flow(name="dream", flow_run_name="dream {params}", persist_result=False)
def dream(
    params: str = "params.yaml",
    settings: Settings = AS_IN_FILE,
    overrides: dict[str, Any] | None = None,
    keep: bool = False,
) -> str:
    """Make a dataset from a teacher, train students on it, and measure both, as `dvc repro` does.

    The accuracy is measured where the parameters name real data.

    Args:
        params: Path of the parameter file. It is read once, when the run begins.
        settings: Values that replace those of the parameter file, as fields of a form.
        overrides: Other values that replace the file's, such as {"adaptive.rounds": 2}.
        keep: Refuse to replace shards and students that other parameters made.

    Returns:
        The summary.
    """
    given = settings.overrides(overrides)
    config = load_command_params(params, given)
    name_run("dream", config)
    teacher = load_checked_teacher(config, "dataset", "reports")
    return run_all_stages(config, teacher, {"params": params, "overrides": given}, keep)


def run_all_stages(
    config: Config, teacher: Teacher, parameters: Mapping[str, Any], keep: bool = False
) -> str:
    """The work of the flow, with parameters and teacher already loaded.

    Args:
        config: The parameters of all stages: no stage reads the file again.
        teacher: The teacher of all stages.
        parameters: What Prefect shows as the parameters of the sub-flows.
        keep: Refuse to replace shards and students that other parameters made.
    """
    check_distillation(config, teacher)
    check_evaluation(config)
    stages: dict[str, Callable[[], object]] = {
        "synthesize": lambda: make_shards(config, teacher, keep=keep),
        "distill": lambda: train_students(config, teacher, keep),
    }
    for stage, work in stages.items():
        run_as_flow(stage, work, parameters, config)
    return judge(config, teacher)
