"""The whole: synthesis with its adaptive rounds, distillation, measures, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.distill import distill
from flows.running import publish
from flows.synthesize import synthesize
from pipeline.evaluation.accuracy import evaluate
from pipeline.evaluation.dataset_measures import measure
from pipeline.evaluation.inputs import check_evaluation
from pipeline.params import load_config
from pipeline.reports.files import report_evaluation, report_measures, summarise
from pipeline.stages.distill import check_distillation
from pipeline.synthesis.check import load_checked_teacher


@flow(name="dream", flow_run_name="dream {params}", persist_result=False)
def dream(params: str = "params.yaml", overrides: dict[str, Any] | None = None) -> str:
    """From a teacher to a dataset to trained students and what is measured of both, as `dvc repro`;
    accuracy where real data is set.

    Args:
        params: Path of the parameter file.
        overrides: Values laid over it, such as {"adaptive.rounds": 2}.

    Returns:
        The summary.
    """
    config = load_config(Path(params), overrides)
    teacher = load_checked_teacher(config)
    check_distillation(config, teacher)
    check_evaluation(config)
    synthesize(params, overrides)
    distill(params, overrides)
    if config.evaluation.data is not None:
        report_evaluation(config, evaluate(config, teacher))
    report_measures(config, *measure(config, teacher))
    summary = summarise(config)
    publish(lambda: create_markdown_artifact(key="summary", markdown=f"```\n{summary}\n```"))
    return summary
