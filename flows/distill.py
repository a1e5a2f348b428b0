"""The flow ``distill``: one task run for each student that is missing or stale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import name_run, publish_picture, publish_table
from flows.running import job_runner
from flows.settings import AS_IN_FILE, Settings
from pipeline.config.schema import Config
from pipeline.evaluation.held_out import held_out_agreement
from pipeline.execution.choice import open_executor
from pipeline.params import load_command_params
from pipeline.reports.files import report_distillation
from pipeline.stages.distill import distill_students
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.teacher import Teacher


@flow(name="distill", flow_run_name="distill {params}", persist_result=False)
def distill(
    params: str = "params.yaml",
    settings: Settings = AS_IN_FILE,
    overrides: dict[str, Any] | None = None,
    keep: bool = False,
) -> int:
    """Train a student from scratch on the shards, for each seed.

    Args:
        params: Path of the parameter file.
        settings: Values that replace those of the parameter file, as fields of a form.
        overrides: Other values that replace the file's, such as {"distillation.steps": 500}.
        keep: Refuse to replace students that other parameters made.

    Returns:
        The number of students that were trained.
    """
    config = load_command_params(params, settings.overrides(overrides))
    name_run("distill", config)
    return train_students(config, load_checked_teacher(config), keep)


def train_students(config: Config, teacher: Teacher, keep: bool = False) -> int:
    """The work of the flow, with parameters and teacher already loaded."""
    outputs = ("dataset", "students")
    with open_executor(config, config.distillation.threads, outputs) as executor:
        run = job_runner(executor, config.execution.retries)
        trained = distill_students(config, teacher, run, keep)
        held_out = held_out_agreement(config, teacher, run)
    report_distillation(config, trained, held_out)
    students = json.loads((Path(config.paths.reports) / "distillation.json").read_bytes())
    rows = [{"student": name, **row} for name, row in students["students"].items()]
    publish_table("students", rows, f"The last step of each student in {config.paths.students}")
    curves = Path(config.paths.reports) / "distillation.png"
    publish_picture("learning-curves", curves, "Learning curves of the students")
    return len(trained)
