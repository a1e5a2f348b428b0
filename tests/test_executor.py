"""What only the executor of long-lived processes can get wrong."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable

import pytest

from pipeline.executor import PerDevice, Stopped


def test_stop_ends_its_own_workers_and_nobody_elses() -> None:
    """Once while they work, once while they still start."""
    bystander = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    bystander.start()
    for wait_for_start in (True, False):
        executor, stopped = PerDevice([{}, {}], "cpu"), []

        def run(executor: PerDevice = executor, stopped: list[Stopped] = stopped) -> None:
            with pytest.raises(Stopped) as caught:
                executor.run(nap, 600)
            stopped.append(caught.value)

        if wait_for_start:
            assert executor.run(nap, 0) == "cpu"
        threads = [threading.Thread(target=run) for _ in range(executor.workers)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        executor.stop()
        for thread in threads:
            thread.join(60)
        assert len(stopped) == 2
        with pytest.raises(Stopped):
            executor.run(nap, 0)
        executor.close()
    assert bystander.is_alive()
    bystander.kill()
    bystander.join()


def nap(job: float, device: str, report: Callable[[float], None]) -> str:
    time.sleep(job)
    return device
