"""Measures shards and students with few steps, and separates start, step and remaining time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pipeline.config.schema import Config
from pipeline.device.cuda_graphs import WARM
from pipeline.distillation.job import DistillJob
from pipeline.distillation.train_student import distill
from pipeline.estimation.cost import RoundSpeed
from pipeline.execution.executor import Work
from pipeline.synthesis.job import ShardJob
from pipeline.synthesis.make_shard import make_shard

FEWEST, MOST = 2, 100  # Steps of one measured call.
ENOUGH = 2.0  # A measurement has at least this many seconds of steps, if MOST allows it.
REPEATS = 3  # The median of the measurements counts, because other work may disturb one.


class Stopwatch:
    """A runner (see :mod:`pipeline.execution.runner`) that does its one job several times.

    Args:
        device: ``cpu`` or ``cuda``.
        report: Called with 1 after the first shard, which compiles, and after the timing.

    Attributes:
        images: Images of the shard.
        batches: Batches of the shard.
        start: Seconds that the first shard takes in addition, to load and compile.
        base: Seconds of the shard without its steps.
        step: Seconds of one step of all batches.
    """

    def __init__(self, device: str, report: Callable[[float], None] = lambda part: None) -> None:
        self._device, self._report = device, report
        self.images, self.batches = 0, 0
        self.start, self.base, self.step = 0.0, 0.0, 0.0
        self._student = (0.0, 0.0, 0.0)

    def run(self, work: Work, jobs: Sequence[Any], description: str) -> list[Any]:
        """Measure the one job, a shard or a student, and return its result in a list."""
        (job,) = jobs
        if isinstance(job, ShardJob):
            self._time_shard(job)
        else:
            # Each call captures its own CUDA graph, after WARM steps.
            self._student = separate_times(
                lambda steps: distill(*self._at(_training(job, steps)))["seconds"], WARM + 1
            )
        return [work(*self._at(job))]

    def speed(self, config: Config) -> RoundSpeed:
        """Compute the speed of a round with the iterations and steps of a configuration."""
        start, base, step = self._student
        return RoundSpeed(
            image=(self.base + self.step * config.iterations) / self.images,
            start=self.start,
            student=start + base + step * config.adaptive.training.steps,
        )

    def _time_shard(self, job: ShardJob) -> None:
        compiled = False

        def seconds(steps: int) -> float:
            nonlocal compiled
            spent = make_shard(*self._at(_iterating(job, steps))).seconds
            if not compiled:
                self._report(1)
            compiled = True
            return spent

        coarse = job.config.objective.coarse
        self.start, self.base, self.step = separate_times(seconds, fewest_steps(coarse))
        self.images, self.batches = job.images, len(job.spec["batches"])
        self._report(1)

    def _at(self, job: Any) -> tuple[Any, str, Callable[[float], None]]:
        return job, self._device, lambda amount: None


def _iterating(job: ShardJob, steps: int) -> ShardJob:
    synthesis = job.config.synthesis.model_copy(update={"iterations": steps})
    config = job.config.model_copy(update={"synthesis": synthesis})
    return replace(job, config=config, spec={**job.spec, "iterations": steps})


def _training(job: DistillJob, steps: int) -> DistillJob:
    return replace(job, training=job.training.model_copy(update={"steps": steps}))


def fewest_steps(coarse: float) -> int:
    """Find the fewest steps that include steps at half size and steps at full size.

    Args:
        coarse: Share of the steps that are at half size, in [0, 1].

    Returns:
        The number of steps; ``FEWEST`` if all steps have one size.
    """
    some = (steps for steps in range(FEWEST, MOST) if 0 < round(coarse * steps) < steps)
    return next(some, FEWEST)


def separate_times(seconds: Callable[[int], float], few: int) -> tuple[float, float, float]:
    """Separate the seconds of the start, of one step, and of everything else.

    Args:
        seconds: ``seconds(steps)`` does the work with a number of steps and returns its duration.
            Its first call loads and compiles.
        few: Smallest number of steps.

    Returns:
        Seconds of the start, of a call without its steps, and of one step.
    """
    # Two calls in a row never have the same number of steps: the second would find its work done.
    first = seconds(few + 1)
    more, pairs = few, [(0.0, 0.0)]
    while pairs[0][1] - pairs[0][0] < ENOUGH and more < MOST:
        more = min(MOST, 4 * more)
        pairs = [(seconds(few), seconds(few + more))]
    pairs += [(seconds(few), seconds(few + more)) for _ in range(REPEATS - 1)]
    step = max(0.0, statistics.median(long - short for short, long in pairs)) / more
    base = max(0.0, statistics.median(short for short, _ in pairs) - few * step)
    return max(0.0, first - base - (few + 1) * step), base, step
