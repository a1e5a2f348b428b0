"""The section ``execution``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.fields import Few, Name, Section


class ExecutionConfig(Section):
    """Where the work runs. No value here makes a shard or a student stale."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``cpu`` or ``cuda``; ``auto``: cuda where a GPU is found, else cpu."""

    workers: Few | None = None
    """Worker processes, 1 to 1024. Null: one for each GPU, or as many as the CPU cores hold."""

    dask_address: Name | None = None
    """Address of a Dask scheduler whose workers do the work, such as ``tcp://host:8786``. Null: the
    work runs on this machine."""

    logger: Literal["auto", "none", "dvclive", "tensorboard", "wandb", "mlflow"] = "auto"
    """Where ``distill`` logs a student's values while it trains. ``auto``: DVCLive in a stage that
    DVC runs, if DVCLive is installed, else nothing."""

    retries: Annotated[int, Field(ge=0, le=1000)] = 2
    """How often a failed shard or student is tried again, 0 to 1000."""
