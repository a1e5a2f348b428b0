"""The flow ``synthesize``: one task run for each shard that is missing or stale."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow

from flows.artifacts import name_run, publish_picture, publish_table
from flows.running import job_runner
from flows.settings import AS_IN_FILE, Settings
from pipeline.config.schema import Config
from pipeline.evaluation.verdict import dataset_verdict
from pipeline.execution.choice import open_executor
from pipeline.params import load_command_params, parse_range
from pipeline.reports.files import report_synthesis
from pipeline.stages.synthesize import synthesize as make_missing_shards
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.teacher import Teacher

log = logging.getLogger(__name__)


@flow(name="synthesize", flow_run_name="synthesize {params}", persist_result=False)
def synthesize(
    params: str = "params.yaml",
    settings: Settings = AS_IN_FILE,
    overrides: dict[str, Any] | None = None,
    shards: str | None = None,
    keep: bool = False,
) -> int:
    """Make the shards that are missing or stale, adaptive rounds included.

    Args:
        params: Path of the parameter file.
        settings: Values that replace those of the parameter file, as fields of a form.
        overrides: Other values that replace the file's, such as {"synthesis.iterations": 100}.
        shards: Make only these shards, such as "0:8" for the first eight.
        keep: Refuse to replace shards that other parameters made.

    Returns:
        The number of shards that were made.
    """
    config = load_command_params(params, settings.overrides(overrides))
    name_run("synthesize", config)
    only = parse_range(shards)
    return make_shards(config, load_checked_teacher(config, "dataset", "reports"), only, keep)


def make_shards(
    config: Config, teacher: Teacher, only: range | None = None, keep: bool = False
) -> int:
    """The work of the flow, with parameters and teacher already loaded."""
    with open_executor(config, config.synthesis.threads) as executor:
        run = job_runner(executor, config.execution.retries)
        made = make_missing_shards(config, teacher, run, only, keep)
    if only is None:
        verdict = dataset_verdict(config, teacher)
        grid = report_synthesis(config, made, verdict.report())
        publish_picture("images", grid, f"Images of the first round in {config.paths.dataset}")
        log.info("%s", verdict)
    table = [
        {
            "shard": f"{shard.number:06d}",
            "images": shard.images,
            "seconds": round(shard.seconds, 1),
        }
        for shard in made
    ]
    publish_table("shards", table, f"Shards that this run made in {config.paths.dataset}")
    return len(made)
