"""The flow that brings the dataset up to date: one task run for each shard that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.running import prefect_runner, publish
from pipeline.execution.runner import open_executor
from pipeline.params import load_config, parse_range
from pipeline.reports.files import report_synthesis
from pipeline.stages.synthesize import synthesize as make_missing_shards


@flow(name="synthesize", flow_run_name="synthesize {params}", persist_result=False)
def synthesize(
    params: str = "params.yaml",
    overrides: dict[str, Any] | None = None,
    shards: str | None = None,
) -> int:
    """Make the shards that are missing or stale, adaptive rounds included.

    Args:
        params: Path of the parameter file.
        overrides: Values laid over it, such as {"synthesis.iterations": 100}.
        shards: Make only these, such as "0:8" for the first eight.

    Returns:
        How many shards were made.
    """
    config = load_config(Path(params), overrides)
    only = parse_range(shards)
    with open_executor(config, config.synthesis.threads) as executor:
        made = make_missing_shards(config, prefect_runner(executor, config.execution.retries), only)
    if only is None:
        report_synthesis(config, made)
    table = [
        {
            "shard": f"{shard.number:06d}",
            "images": shard.images,
            "seconds": round(shard.seconds, 1),
        }
        for shard in made
    ]
    text = f"Shards made by this run in {config.paths.dataset}"
    publish(lambda: create_table_artifact(key="shards", table=table, description=text))
    return len(made)
