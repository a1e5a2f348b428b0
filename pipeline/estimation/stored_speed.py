"""What `probe` and `plan --probe` measured on this machine, kept in the reports for `plan`."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.estimation.cost import RoundSpeed
from pipeline.estimation.device_timing import DeviceTiming
from pipeline.storage import digest_json, write_json


def write_speed(config: Config, speed: float) -> Path:
    """Keep a measured speed.

    Args:
        config: The parameters that it was measured with.
        speed: Image-iterations per second of one worker.

    Returns:
        The file.
    """
    path = Path(config.paths.reports) / "probe.json"
    measured_with = digest_json(_conditions(config))
    write_json(path, {"image_iterations_per_second": speed, "measured_with": measured_with})
    return path


def read_speed(config: Config) -> float | None:
    """The speed that `probe` measured with these parameters on this machine, or None.

    Iterations, batch size and number of images may differ: they change it little.
    """
    try:
        facts = json.loads((Path(config.paths.reports) / "probe.json").read_bytes())
        speed = float(facts["image_iterations_per_second"])
        fits = facts["measured_with"] == digest_json(_conditions(config))
    except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
        return None
    return speed if fits and 0 < speed < float("inf") else None


def timings_file(config: Config) -> Path:
    """The file with the measurements of `plan --probe`."""
    return Path(config.paths.reports) / "plan.json"


def write_timings(config: Config, timings: list[DeviceTiming]) -> None:
    """Keep the measurements of `plan --probe`.

    Args:
        config: The parameters that they were measured with.
        timings: The measurements of the devices.
    """
    devices = [asdict(timing) for timing in timings]
    write_json(timings_file(config), {"devices": devices, "measured_with": _job(config)})


def read_timings(config: Config) -> list[DeviceTiming] | None:
    """The measurements of `plan --probe` for the same job on this machine, or None.

    The number of images may differ, and so may the seed.
    """
    try:
        facts = json.loads(timings_file(config).read_bytes())
        timings = [
            DeviceTiming(**{**one, "speeds": [RoundSpeed(**speed) for speed in one["speeds"]]})
            for one in facts["devices"]
        ]
        fits = facts["measured_with"] == _job(config)
    except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
        return None
    return timings if fits and timings else None


def _job(config: Config) -> str:
    """A digest of what decides the measurements of `plan --probe`. It needs no network."""
    batch, rounds = plan_of(config).shard(0).batches[0], config.adaptive.rounds
    other = {"images", "images_per_class", "seed", "shard_size"}
    return digest_json(
        {
            **_conditions(config),
            "synthesis": config.synthesis.model_dump(mode="json", exclude=other),
            "batch": [batch.size, batch.candidates],
            "compile": config.compiled,
            "workers": [config.execution.workers, config.execution.dask_address],
            "adaptive": config.adaptive.model_dump(mode="json") if rounds else None,
            "student": config.student.model_dump(mode="json") if rounds else None,
        }
    )


def _conditions(config: Config) -> dict[str, Any]:
    """What decides the speed of `probe`. It needs no network, so that `plan` imports none."""
    synthesis = config.synthesis
    return {
        "teacher": config.teacher.model_dump(mode="json"),
        "objective": synthesis.objective.model_dump(mode="json"),
        "precision": synthesis.precision,
        "checkpointing": synthesis.checkpointing,
        "threads": synthesis.threads,
        "device": config.execution.device,
        "gpus": torch.cuda.device_count(),
        "machine": platform.node(),
        "torch": torch.__version__,
    }
