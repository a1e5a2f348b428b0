"""The loggers that ``execution.logger`` can name, and the folder ``live`` that they write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from pipeline.config.execution import ExecutionConfig
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.tracking.live_log import Tracking

LOGGERS = ("dvclive", "tensorboard", "wandb", "mlflow")
"""Each name is that of a module in this folder, of a package and of an extra."""
LIVE = "live"
METRICS, PLOTS = "metrics", "plots"
"""Folders of DVCLive. ``dvc.yaml`` names both, so every run makes them, with any logger."""


def chosen_logger(execution: ExecutionConfig) -> str | None:
    """The logger that ``execution.logger`` asks for, or None.

    ``auto`` is DVCLive in a stage that DVC runs, if DVCLive is installed and the work is not sent
    to other hosts.
    """
    if execution.logger != "auto":
        return None if execution.logger == "none" else execution.logger
    here = "DVC_STAGE" in os.environ and execution.dask_address is None
    return "dvclive" if here and find_spec("dvclive") else None


def check_logger(config: Config) -> None:
    """Refuse a logger whose package is missing.

    Raises:
        UserError: The package of ``execution.logger`` is not installed.
    """
    logger = chosen_logger(config.execution)
    if logger is not None and find_spec(logger) is None:
        raise UserError(
            f"execution.logger is {logger}, and the package {logger} is not installed: "
            f"pip install -c constraints.txt -e '.[{logger}]', or set execution.logger to none"
        )


def tracking_of(config: Config, name: str) -> Tracking | None:
    """The logger of the student ``name``, or None if nothing is logged."""
    logger = chosen_logger(config.execution)
    if logger is None:
        return None
    return Tracking(logger=logger, folder=str(live_folder(config).resolve()), name=name)


def live_folder(config: Config) -> Path:
    """The folder of all live logs."""
    return Path(config.paths.reports) / LIVE


def clear_live_logs(config: Config, keep: Iterable[str]) -> None:
    """Make the folders of DVCLive, and remove its logs of students other than ``keep``.

    Only files that have the form of DVCLive's are removed. The logs of other loggers stay, because
    they can hold several runs.

    Args:
        config: The parameters.
        keep: Names of the students whose logs stay.
    """
    kept = set(keep)
    metrics, plots = live_folder(config) / METRICS, live_folder(config) / PLOTS
    for folder in (metrics, plots):
        folder.mkdir(parents=True, exist_ok=True)
    for file in metrics.glob("*.json"):
        if file.stem not in kept:
            file.unlink()
    for folder in plots.iterdir():
        if folder.name not in kept and (folder / "metrics").is_dir():
            shutil.rmtree(folder)
