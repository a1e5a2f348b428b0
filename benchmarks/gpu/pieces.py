"""Long work in pieces: a budget of seconds for a call, and where the next call goes on."""

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
    """The budget of this call is spent. What is done is kept."""


class Pieces:
    """The clock of one call, and in ``path`` the seconds that each stage took over all calls.

    A stage begins with compiling, which cannot be cut: none begins with less than ``start`` seconds
    left.
    """

    def __init__(self, path: Path, seconds: float, start: float) -> None:
        self._path, self._start = path, start
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    def check(self) -> None:
        """Raises OutOfTime where the budget is spent."""
        if self.over:
            raise OutOfTime

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of this block, also of one that ends early."""
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
        """What each stage took so far."""
        if not self._path.is_file():
            return {}
        spent: dict[str, float] = json.loads(self._path.read_text())
        return spent

    def runner(self, device: str) -> Runner:
        """Jobs one after the other in this process, none begun after the end."""

        def run(work: Work, jobs: Sequence[Any], description: str) -> list[Any]:
            results = []
            for job in jobs:
                self.check()
                results.append(work(job, device, lambda images: None))
            return results

        return run

    def after_checkpoint(self, training: DistillationConfig) -> Callable[[float], None]:
        """What a distillation reports its images to: stops it in the step after a checkpoint, so
        that no more than that step is lost."""
        images = 0.0

        def report(more: float) -> None:
            nonlocal images
            images += more
            step = round(images / training.batch_size)
            if more and (step - 1) % training.checkpoint_every == 0:
                self.check()

        return report
