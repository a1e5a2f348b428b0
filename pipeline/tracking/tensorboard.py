"""TensorBoard: look at the logs with ``tensorboard --logdir reports/live/tensorboard``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter


class TensorBoardTracker:
    """Writes an event file."""

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def begin(folder: str, name: str, run: str) -> TensorBoardTracker:
    """Begin the log of a training. It replaces the log of the same training if it was stopped.

    Args:
        folder: The folder ``live`` of ``paths.reports``.
        name: Name of the student.
        run: Digest of all that determines the training.
    """
    place = Path(folder) / "tensorboard" / f"{name}-{run[:8]}"
    shutil.rmtree(place, ignore_errors=True)
    return TensorBoardTracker(SummaryWriter(str(place)))
