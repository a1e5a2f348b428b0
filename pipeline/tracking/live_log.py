"""One interface to all loggers, and the log of a training that writes through it.

A logger never changes or stops a training: its first error becomes a warning, and ends the logging.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import first_line

log = logging.getLogger(__name__)
Row = Mapping[str, float]
"""A row of a student's log: ``step`` and the values at that step."""


class Tracker(Protocol):
    """The receiver of the values of one training, such as a file or a server."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log named values at a step. Steps come in ascending order."""

    def close(self) -> None:
        """Write what is not yet written. The training has ended or was stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """Which logger a student has. It can be pickled, since a training may run in another process.

    Attributes:
        logger: A key of ``LOGGERS`` of :mod:`pipeline.tracking.loggers`.
        folder: The folder ``live`` of ``paths.reports``.
        name: Name of the student.
    """

    logger: str
    folder: str
    name: str

    def open(self, run: str) -> Tracker:
        """Import the logger's package and begin its log.

        Args:
            run: Digest of all that determines the training.

        Raises:
            ImportError: The package is missing.
        """
        module = importlib.import_module(f"pipeline.tracking.{self.logger}")
        opened: Tracker = module.begin(self.folder, self.name, run)
        return opened


class LiveLog:
    """The log of one training. Call it with all rows so far: it sends the new ones.

    A training that continues from a checkpoint passes the rows of the checkpoint again. The logger
    begins an empty log, or leaves out the steps that it has. So each step is logged once.

    Args:
        begin: Opens the logger. It is called once, before the first rows are sent.
        name: Name of the student, for the warning.
    """

    def __init__(self, begin: Callable[[], Tracker] | None, name: str) -> None:
        self._begin, self._name = begin, name
        self._tracker: Tracker | None = None
        self._sent = 0

    def __call__(self, rows: Sequence[Row]) -> None:
        if self._begin is None:
            return
        try:
            if self._tracker is None:
                self._tracker = self._begin()
            for row in rows[self._sent :]:
                values = {name: value for name, value in row.items() if name != "step"}
                self._tracker.log(int(row["step"]), values)
            self._sent = len(rows)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """End the log."""
        if self._tracker is None:
            return
        try:
            self._tracker.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._begin = self._tracker = None
        log.warning(
            "%s: its logger failed (%s). The training goes on, and its further values are only in "
            "the student's .csv file",
            self._name,
            first_line(error),
        )


@contextmanager
def live_log(tracking: Tracking | None, run: str) -> Iterator[LiveLog]:
    """Open the log of a training, and close it at the end.

    Args:
        tracking: The logger. None logs nothing.
        run: Digest of all that determines the training.

    Example::

        with live_log(tracking, spec_sha256) as track:
            track([{"step": 1, "loss": 2.5}])
            track([{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}])  # sends step 2
    """
    if tracking is None:
        yield LiveLog(None, "")
        return
    opened = LiveLog(lambda: tracking.open(run), tracking.name)
    try:
        yield opened
    finally:
        opened.close()
