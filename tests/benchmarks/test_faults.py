"""The replay of power losses, which reads the program's own file operations."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.faults.power import power


@pytest.mark.slow
def test_power_losses_are_replayed_and_held(tmp_path: Path) -> None:
    outcome = power(tmp_path, 1, random.Random(0))
    assert outcome.problems == []
    assert outcome.faults > 50
