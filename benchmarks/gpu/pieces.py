"""Long work in parts: a time budget for each call, and the point where the next continues."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.distillation import DistillationConfig
from pipeline.execution.executor import Work
from pipeline.execution.runner import Runner
from pipeline.storage import write_json


class OutOfTime(Exception):
    """The time budget of this call is used up. Finished work is kept."""


class Pieces:
    """The clock of one call. The file ``path`` holds the seconds of each stage over all calls.

    A stage starts with compiling, which cannot be interrupted. No stage starts with less than
    ``start`` seconds left.
    """

    def __init__(self, path: Path, seconds: float, start: float) -> None:
        self._path, self._start = path, start
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    def check(self) -> None:
        """Raise OutOfTime if the budget is used up."""
        if self.over:
            raise OutOfTime

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a ``with`` block, also if it ends early."""
        started = time.monotonic()
        if started + self._start > self._end:
            raise OutOfTime
        try:
            yield
        finally:
            spent = self.seconds()
            spent[name] = round(spent.get(name, 0.0) + time.monotonic() - started, 1)
            write_json(self._path, spent)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage so far."""
        if not self._path.is_file():
            return {}
        spent: dict[str, float] = json.loads(self._path.read_text())
        return spent

    def runner(self, device: str) -> Runner:
        """Run jobs one after the other here. No job starts after the end of the budget."""

        def run(work: Work, jobs: Sequence[Any], description: str) -> list[Any]:
            results = []
            for job in jobs:
                self.check()
                results.append(work(job, device, lambda images: None))
            return results

        return run

    def after_checkpoint(self, training: DistillationConfig) -> Callable[[float], None]:
        """Return the report function of a distillation; it stops in the step after a checkpoint.

        At most that step is lost.
        """
        images = 0.0

        def report(more: float) -> None:
            nonlocal images
            images += more
            step = round(images / training.batch_size)
            if more and (step - 1) % training.checkpoint_every == 0:
                self.check()

        return report
