"""A measured moment of the real work: one batch's steps, its shard, a student's steps."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.adaptive import synthesize
from pipeline.config import Config
from pipeline.costs import RoundSpeed, show_bytes, show_seconds
from pipeline.distillation import DistillJob, distill
from pipeline.executor import Work
from pipeline.memory import peak_memory
from pipeline.running import local_runner, open_executor
from pipeline.shards import Sample, write_tar
from pipeline.synthesis import ShardJob, check, make_shard, plan_of

FEWEST, MOST = 2, 100  # steps
ENOUGH = 2.0  # seconds of steps that the measurement is made of, if MOST allows


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """Measure one device. ``number`` tells the jobs of several devices apart."""

    config: Config
    number: int
    images: int = 1

    def __str__(self) -> str:
        return f"probe-{self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """One device: the speed of each round, one step of a batch, and the memory that took.

    ``step`` is in seconds of a batch; ``write`` in seconds of an image, all but its steps;
    ``memory`` in bytes, the GPU's or, on a CPU, the whole process's.
    """

    speeds: list[RoundSpeed]
    step: float
    write: float
    memory: int


def probe_devices(config: Config) -> list[Probed]:
    """Measure every device that ``execution`` names, all at the same time."""
    check(config)
    with open_executor(config, config.synthesis.threads) as executor:
        jobs = [ProbeJob(config, number) for number in range(executor.workers)]
        return local_runner(executor, retries=0)(probe, jobs, "probe")


def describe(probed: list[Probed]) -> list[str]:
    """What was measured, in words: the slowest device's step, the mean of the other times."""
    step = max(one.step for one in probed)
    memory = show_bytes(max(one.memory for one in probed))
    write = float(np.mean([one.write for one in probed]))
    lines = [
        f"measured on {len(probed)} devices at once: {step:.3g} s a step of a batch, "
        f"{write:.2g} s an image to judge and write, {memory} of memory"
    ]
    for number, speed in enumerate(mean_speeds(probed)[:2]):
        text = f"{'an adaptive round' if number else 'round 0'}: {1 / speed.image:.3g} images/s"
        student = f", {show_seconds(speed.student)} for its student" if number else ""
        lines.append(f"{text} a device, {show_seconds(speed.start)} to start{student}")
    return lines


def probe(job: ProbeJob, device: str, report: Callable[[float], None]) -> Probed:
    """Make shards of one batch with few steps, in a temporary directory, by the usual way.

    The time that a step takes is the difference between more and fewer steps; what is left is
    judging, encoding and writing. The first shard, which loads and compiles, is the start.
    """
    rounds = job.config.adaptive.rounds
    with tempfile.TemporaryDirectory() as place:
        small = _one_batch(job.config, Path(place), min(rounds, 1))
        watches = [_Stopwatch(device) for _ in range(small.adaptive.rounds + 1)]
        for number, watch in enumerate(watches):
            synthesize(small, watch.run, range(number, number + 1))
    report(job.images)
    first, *later = watches
    return Probed(
        speeds=[watch.speed(job.config) for watch in (first, *later * rounds)],
        step=first.step / first.batches,
        write=first.base / first.images,
        memory=peak_memory(device),
    )


def mean_speeds(probed: list[Probed]) -> list[RoundSpeed]:
    """Of several devices that were measured at the same time."""
    return [
        RoundSpeed(
            image=float(np.mean([speed.image for speed in speeds])),
            start=float(np.mean([speed.start for speed in speeds])),
            student=float(np.mean([speed.student for speed in speeds])),
        )
        for speeds in zip(*(one.speeds for one in probed), strict=True)
    ]


def sample_bytes(config: Config) -> int:
    """The most bytes that an image takes in its tar: a PNG of pure noise is as large as raw."""
    shape, count = config.teacher.input, 2
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (count, shape.channels, shape.height, shape.width), np.uint8)
    facts = {"class_name": "0", "cls": 0, "round": 0, "teacher_pred": 0, "teacher_prob": 0.123456}
    logits = np.zeros(config.teacher.classes, np.float16) if config.synthesis.soft_labels else None
    samples = (Sample(f"{index:09d}", image, 0, facts, logits) for index, image in enumerate(noise))
    first, second = write_tar(io.BytesIO(), samples)
    return second.offset - first.offset


class _Stopwatch:
    """A runner (see :mod:`pipeline.running`) that makes its one shard several times."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.images, self.batches = 0, 0
        self.start, self.base, self.step = 0.0, 0.0, 0.0
        self._student = (0.0, 0.0)

    def run(self, work: Work, jobs: Sequence[Any], description: str) -> list[Any]:
        """The results of ``jobs``, one shard or one student; the times are kept."""
        (job,) = jobs
        if isinstance(job, ShardJob):
            self._time_shard(job)
        else:
            self._student = _slope(
                lambda steps: distill(*self._at(_training(job, steps)))["seconds"]
            )
        return [work(*self._at(job))]

    def speed(self, config: Config) -> RoundSpeed:
        """What was measured, for the iterations and steps of ``config``."""
        base, step = self._student
        return RoundSpeed(
            image=(self.base + self.step * config.synthesis.iterations) / self.images,
            start=self.start,
            student=base + step * config.adaptive.training.steps,
        )

    def _time_shard(self, job: ShardJob) -> None:
        def seconds(steps: int) -> float:
            return make_shard(*self._at(_iterating(job, steps))).seconds

        first = seconds(1)
        self.base, self.step = _slope(seconds)
        self.start = max(0.0, first - self.base - self.step)
        self.images, self.batches = job.images, len(job.spec["batches"])

    def _at(self, job: Any) -> tuple[Any, str, Callable[[float], None]]:
        return job, self._device, lambda amount: None


def _one_batch(config: Config, place: Path, rounds: int) -> Config:
    """The same work on one batch a round, which nothing makes the probe try again."""
    batch = plan_of(config).shard(0).batches[0].size
    # The first round must have a batch for the student too.
    images = max(batch, rounds * config.adaptive.training.batch_size)
    synthesis = {
        "images": images,
        "images_per_class": None,
        "shard_size": images,
        "batch_size": batch,
        "iterations": 0,
        "min_confidence": 0.0,
    }
    paths = {"dataset": str(place / "dataset"), "reports": str(place / "reports")}
    return config.model_copy(
        update={
            "synthesis": config.synthesis.model_copy(update=synthesis),
            "adaptive": config.adaptive.model_copy(update={"rounds": rounds, "images": batch}),
            "paths": config.paths.model_copy(update=paths),
        }
    )


def _iterating(job: ShardJob, steps: int) -> ShardJob:
    synthesis = job.config.synthesis.model_copy(update={"iterations": steps})
    config = job.config.model_copy(update={"synthesis": synthesis})
    return replace(job, config=config, spec={**job.spec, "iterations": steps})


def _training(job: DistillJob, steps: int) -> DistillJob:
    return replace(job, training=job.training.model_copy(update={"steps": steps}))


def _slope(seconds: Callable[[int], float]) -> tuple[float, float]:
    """Seconds beside the steps, and of a step, of something that ``seconds(steps)`` times."""
    few, more = seconds(FEWEST), FEWEST
    difference = 0.0
    while difference < ENOUGH and more < MOST:
        more = min(MOST, 4 * more)
        difference = seconds(FEWEST + more) - few
    step = max(0.0, difference) / more
    return max(0.0, few - FEWEST * step), step
