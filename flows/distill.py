"""The flow that trains the students: one task run for each that is not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.running import prefect_runner
from pipeline.execution.runner import open_executor
from pipeline.params import load_config
from pipeline.reports.files import report_distillation
from pipeline.stages.distill import distill_students
from pipeline.synthesis.check import load_checked_teacher


@flow(name="distill", flow_run_name="distill {params}", persist_result=False)
def distill(params: str = "params.yaml", overrides: dict[str, Any] | None = None) -> int:
    """Train a student from scratch on the shards, for each seed.

    Args:
        params: Path of the parameter file.
        overrides: Values laid over it, such as {"distillation.steps": 500}.

    Returns:
        How many students were trained.
    """
    config = load_config(Path(params), overrides)
    teacher = load_checked_teacher(config)
    outputs = ("dataset", "students")
    with open_executor(config, config.distillation.threads, outputs) as executor:
        trained = distill_students(
            config, teacher, prefect_runner(executor, config.execution.retries)
        )
    report_distillation(config, trained)
    return len(trained)
