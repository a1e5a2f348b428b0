"""Weights & Biases: log offline, unless the variable ``WANDB_MODE`` says otherwise."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import wandb


class WandbTracker:
    """Writes a run. ``wandb sync`` uploads an offline run."""

    def __init__(self, run: wandb.Run) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def begin(folder: str, name: str, run: str) -> WandbTracker:
    """Begin a run whose id follows from the training.

    A training that continues has the same id. Offline, the new folder holds all steps and replaces
    the folder of the stopped run. A server leaves out the steps that it has.

    Args:
        folder: The folder ``live`` of ``paths.reports``.
        name: Name of the student.
        run: Digest of all that determines the training.
    """
    identity = run[:16]
    for earlier in (Path(folder) / "wandb").glob(f"offline-run-*-{identity}"):
        shutil.rmtree(earlier)
    Path(folder).mkdir(parents=True, exist_ok=True)
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "dreamshard"),
        name=name,
        id=identity,
        resume="allow",
        dir=folder,
        mode=None if "WANDB_MODE" in os.environ else "offline",
        settings=wandb.Settings(silent=True, console="off"),
    )
    return WandbTracker(opened)
