"""A process keeps the memory that it freed, and hands out jobs with one thread."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pipeline.device.threads import one_thread

SCRIPT = """
import resource, sys, torch
from pipeline.device.threads import use_threads
if sys.argv[1] == "kept":
    use_threads(1)
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**25)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1], torch.get_num_threads())
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
    )
    count, threads = map(int, done.stdout.split())
    assert how != "kept" or threads == 1
    return count


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_kept() -> None:
    assert faults("kept") < 100 < faults("given back")


def test_the_one_thread_is_lent() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError), one_thread():
            assert torch.get_num_threads() == 1
            raise ValueError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
