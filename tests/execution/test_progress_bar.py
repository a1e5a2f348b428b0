from __future__ import annotations

from dataclasses import dataclass

import pytest

from pipeline.execution.executor import InProcess
from pipeline.execution.runner import progress_bar


@dataclass(frozen=True)
class Job:
    images: int
    compiles: bool


@pytest.mark.parametrize(("compiles", "said"), [(True, "compiling"), (False, "starting")])
def test_the_bar_says_why_nothing_moves(
    capsys: pytest.CaptureFixture[str], compiles: bool, said: str
) -> None:
    job = Job(3, compiles)
    with progress_bar(InProcess("cpu"), [job], "round 0") as finished:
        assert said in capsys.readouterr().err
        finished(job)
    assert said not in capsys.readouterr().err.splitlines()[-1].rpartition("\r")[2]
