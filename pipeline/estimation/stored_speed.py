"""The speed that `probe` measured, kept in the reports for `plan`."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch

from pipeline.config.schema import Config
from pipeline.storage import digest_json, write_json


def write_speed(config: Config, speed: float) -> Path:
    """Keep a measured speed.

    Args:
        config: The parameters that it was measured with.
        speed: Image-iterations per second of one worker.

    Returns:
        The file.
    """
    path = _file(config)
    write_json(path, {"image_iterations_per_second": speed, "measured_with": _conditions(config)})
    return path


def read_speed(config: Config) -> float | None:
    """The speed that `probe` measured with these parameters on this machine, or None.

    Iterations, batch size and number of images may differ: they change it little.
    """
    try:
        facts = json.loads(_file(config).read_bytes())
        speed = float(facts["image_iterations_per_second"])
        fits = facts["measured_with"] == _conditions(config)
    except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
        return None
    return speed if fits and 0 < speed < float("inf") else None


def _file(config: Config) -> Path:
    return Path(config.paths.reports) / "probe.json"


def _conditions(config: Config) -> str:
    """A digest of what decides the speed. It needs no network, so that `plan` imports none."""
    synthesis = config.synthesis
    return digest_json(
        {
            "teacher": config.teacher.model_dump(mode="json"),
            "objective": synthesis.objective.model_dump(mode="json"),
            "precision": synthesis.precision,
            "checkpointing": synthesis.checkpointing,
            "threads": synthesis.threads,
            "device": config.execution.device,
            "machine": platform.node(),
            "torch": torch.__version__,
        }
    )
