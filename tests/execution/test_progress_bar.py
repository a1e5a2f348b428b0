from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pipeline.execution.executor import InProcess, PerDevice
from pipeline.execution.runner import local_runner, progress_bar
from pipeline.execution.shown_loss import show_loss


@dataclass(frozen=True)
class Job:
    images: int
    compiles: bool


class Terminal(io.StringIO):
    """A standard error that is a terminal of 80 columns."""

    def isatty(self) -> bool:
        return True

    @property
    def frames(self) -> list[str]:
        return self.getvalue().rstrip("\n").split("\r")


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Call this in a test, not in a fixture: pytest replaces the stream between the two."""
    opened = Terminal()
    monkeypatch.setattr(sys, "stderr", opened)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (80, 24))
    return opened


def train(job: Job, device: str, report: Callable[[float], None]) -> None:
    for step in range(3):
        report(job.images / 3)
        show_loss(0.5 / (step + 1))
        time.sleep(0.7)


@pytest.mark.parametrize(("compiles", "said"), [(True, "compiling"), (False, "starting")])
def test_the_bar_says_why_nothing_moves(
    monkeypatch: pytest.MonkeyPatch, compiles: bool, said: str
) -> None:
    terminal = open_terminal(monkeypatch)
    job = Job(3, compiles)
    with progress_bar(InProcess("cpu"), [job], "round 0") as finished:
        assert said in terminal.getvalue()
        finished(job)
    assert said not in terminal.frames[-1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 1])
def test_the_bar_is_one_line_with_speed_time_and_loss(
    monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    terminal = open_terminal(monkeypatch)
    executor = PerDevice([{}] * processes, "cpu") if processes else InProcess("cpu")
    try:
        local_runner(executor, 0)(train, [Job(384_000, False)], "distillation of procedural")
    finally:
        executor.close()
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, +\S+kimg/s, loss 0\.\d+\]", terminal.getvalue())
    assert all(len(frame) <= 80 for frame in terminal.frames)
    assert terminal.getvalue().count("\n") == 1


def test_nothing_is_shown_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(3, False)
    with progress_bar(InProcess("cpu"), [job], "round 0") as finished:
        finished(job)
    assert capsys.readouterr().err == ""
