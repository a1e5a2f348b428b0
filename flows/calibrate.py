"""The flow ``calibrate``: compare the teacher with its quantised copies."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.running import publish
from pipeline.evaluation.calibration import calibrate as compare
from pipeline.evaluation.calibration import describe_calibration
from pipeline.params import load_command_params
from pipeline.reports.files import report_calibration
from pipeline.synthesis.check import load_checked_teacher


@flow(name="calibrate", flow_run_name="calibrate {params}", persist_result=False)
def calibrate(params: str = "params.yaml", overrides: dict[str, Any] | None = None) -> str:
    """Calibrate the teacher by the dataset and by noise, and compare both copies with it.

    Args:
        params: Path of the parameter file.
        overrides: Values that replace the file's, such as {"calibration.activation_bits": 4}.

    Returns:
        The table.
    """
    config = load_command_params(params, overrides)
    report = compare(config, load_checked_teacher(config, "reports"))
    report_calibration(config, report)
    table = "\n".join(describe_calibration(report))
    publish(lambda: create_markdown_artifact(key="calibration", markdown=f"```\n{table}\n```"))
    return table
