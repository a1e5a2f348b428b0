"""A measured moment of the real work: one batch's steps, its shard, a student's steps."""

from __future__ import annotations

import io
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.schema import Config
from pipeline.dataset.plan import Plan, plan_of
from pipeline.dataset.tar import Sample, write_tar
from pipeline.device.cuda_graphs import WARM
from pipeline.device.memory import peak_memory
from pipeline.distillation.job import DistillJob, distill
from pipeline.estimation.cost import RoundSpeed, show_bytes, show_seconds
from pipeline.execution.executor import Work
from pipeline.execution.runner import local_runner, open_executor
from pipeline.stages.synthesize import synthesize
from pipeline.synthesis.check import load_checked_teacher
from pipeline.synthesis.job import ShardJob
from pipeline.synthesis.make_shard import make_shard

FEWEST, MOST = 2, 100  # steps
ENOUGH = 2.0  # seconds of steps that a measurement is made of, if MOST allows
REPEATS = 3  # of which the median counts: other work may disturb one


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
    load_checked_teacher(config)
    with open_executor(config, config.synthesis.threads) as executor:
        jobs = [ProbeJob(config, number) for number in range(executor.workers)]
        return local_runner(executor, retries=0)(probe, jobs, "probe")


def describe_timing(probed: list[Probed], layout: Plan) -> list[str]:
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
        images = len(layout.shard(layout.of_round(number).start).labels)
        shard = f"{show_seconds(images * speed.image)} a shard of {images}"
        student = f", {show_seconds(speed.student)} for its student" if number else ""
        lines.append(f"{text} a device, {shard}, {show_seconds(speed.start)} to start{student}")
    return lines


def probe(job: ProbeJob, device: str, report: Callable[[float], None]) -> Probed:
    """Make shards of one batch with few steps, in a temporary directory, by the usual way.

    The time that a step takes is the difference between more and fewer steps; what is left is
    judging, encoding and writing. What the first shard takes longer, to load and compile, is the
    start. The memory is a whole run's: its batches are of this size and come one at a time.
    """
    rounds = job.config.adaptive.rounds
    with tempfile.TemporaryDirectory() as place:
        small = _one_batch(job.config, Path(place), min(rounds, 1))
        teacher = load_checked_teacher(small)
        watches = [_Stopwatch(device) for _ in range(small.adaptive.rounds + 1)]
        for number, watch in enumerate(watches):
            synthesize(small, teacher, watch.run, range(number, number + 1))
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
    """A runner (see :mod:`pipeline.execution.runner`) that makes its one shard several times."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.images, self.batches = 0, 0
        self.start, self.base, self.step = 0.0, 0.0, 0.0
        self._student = (0.0, 0.0, 0.0)

    def run(self, work: Work, jobs: Sequence[Any], description: str) -> list[Any]:
        """The results of ``jobs``, one shard or one student; the times are kept."""
        (job,) = jobs
        if isinstance(job, ShardJob):
            self._time_shard(job)
        else:  # each call captures its own graph
            self._student = _times(
                lambda steps: distill(*self._at(_training(job, steps)))["seconds"], WARM + 1
            )
        return [work(*self._at(job))]

    def speed(self, config: Config) -> RoundSpeed:
        """What was measured, for the iterations and steps of ``config``."""
        start, base, step = self._student
        return RoundSpeed(
            image=(self.base + self.step * config.synthesis.iterations) / self.images,
            start=self.start,
            student=start + base + step * config.adaptive.training.steps,
        )

    def _time_shard(self, job: ShardJob) -> None:
        def seconds(steps: int) -> float:
            return make_shard(*self._at(_iterating(job, steps))).seconds

        coarse = job.config.objective.coarse
        self.start, self.base, self.step = _times(seconds, _fewest(coarse))
        self.images, self.batches = job.images, len(job.spec["batches"])

    def _at(self, job: Any) -> tuple[Any, str, Callable[[float], None]]:
        return job, self._device, lambda amount: None


def _one_batch(config: Config, place: Path, rounds: int) -> Config:
    """The same work on one batch a round, which nothing makes the probe try again."""
    batch = plan_of(config).shard(0).batches[0]
    # The first round must have a batch for the student too.
    images = max(batch.size, rounds * config.adaptive.training.batch_size)
    synthesis = {
        "images": images,
        "images_per_class": None,
        "shard_size": images,
        "batch_size": max(2, batch.candidates),
        "iterations": 0,
        "min_confidence": 0.0,
        "confirmed": False,
        "max_similarity": None,
    }
    paths = {"dataset": str(place / "dataset"), "reports": str(place / "reports")}
    return config.model_copy(
        update={
            "synthesis": config.synthesis.model_copy(update=synthesis),
            "adaptive": config.adaptive.model_copy(update={"rounds": rounds, "images": batch.size}),
            "paths": config.paths.model_copy(update=paths),
        }
    )


def _iterating(job: ShardJob, steps: int) -> ShardJob:
    synthesis = job.config.synthesis.model_copy(update={"iterations": steps})
    config = job.config.model_copy(update={"synthesis": synthesis})
    return replace(job, config=config, spec={**job.spec, "iterations": steps})


def _training(job: DistillJob, steps: int) -> DistillJob:
    return replace(job, training=job.training.model_copy(update={"steps": steps}))


def _fewest(coarse: float) -> int:
    """The fewest steps that have some of each size, where ``coarse`` is the share of half size."""
    some = (steps for steps in range(FEWEST, MOST) if 0 < round(coarse * steps) < steps)
    return next(some, FEWEST)


def _times(seconds: Callable[[int], float], few: int) -> tuple[float, float, float]:
    """Seconds of the start, beside the steps, and of a step, of what ``seconds(steps)`` times.

    The first call loads and compiles. No call is for as many steps as the one before it, which
    would find its work done.
    """
    first = seconds(few + 1)
    more, pairs = few, [(0.0, 0.0)]
    while pairs[0][1] - pairs[0][0] < ENOUGH and more < MOST:
        more = min(MOST, 4 * more)
        pairs = [(seconds(few), seconds(few + more))]
    pairs += [(seconds(few), seconds(few + more)) for _ in range(REPEATS - 1)]
    step = max(0.0, statistics.median(long - short for short, long in pairs)) / more
    base = max(0.0, statistics.median(short for short, _ in pairs) - few * step)
    return max(0.0, first - base - (few + 1) * step), base, step
