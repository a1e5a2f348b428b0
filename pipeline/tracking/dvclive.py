"""DVCLive: follow a training with ``dvc metrics show``, ``dvc plots show`` or DVC Studio."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dvclive.live import Live


class _Live(Live):
    """The logs of several students in one folder: all metrics in one place, all plots in another.

    ``dvc.yaml`` can then name both places, whatever the students are called.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._folder, self._name = Path(folder), name
        super().__init__(folder, save_dvc_exp=False, dvcyaml=None)

    @property
    def metrics_file(self) -> str:
        return str(self._folder / "metrics" / f"{self._name}.json")

    @property
    def plots_dir(self) -> str:
        return str(self._folder / "plots" / self._name)


class DVCLiveTracker:
    """Writes the last values into ``metrics/NAME.json``, and all values into ``plots``."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._live.step = step
        for name, value in values.items():
            self._live.log_metric(name, value)
        self._live.sync()

    def close(self) -> None:
        self._live.end()


def begin(folder: str, name: str, run: str) -> DVCLiveTracker:
    """Begin the log of a student. It replaces the log of an earlier training with this name.

    Args:
        folder: The folder ``live`` of ``paths.reports``.
        name: Name of the student.
        run: Digest of all that determines the training. Not used here.
    """
    for place in ("metrics", "plots"):
        (Path(folder) / place).mkdir(parents=True, exist_ok=True)
    return DVCLiveTracker(_Live(folder, name))
