"""Measured speed of the devices: a shard of one batch and a student, with few steps each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config.schema import Config
from pipeline.dataset.plan import Plan, plan_of
from pipeline.device.memory import peak_memory
from pipeline.estimation.cost import RoundSpeed, show_bytes
from pipeline.estimation.stopwatch import Stopwatch
from pipeline.execution.choice import open_executor
from pipeline.execution.runner import local_runner
from pipeline.quantities import counted, show_seconds
from pipeline.stages.synthesize import synthesize
from pipeline.synthesis.check import load_checked_teacher


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """A job that measures one device.

    Attributes:
        config: The configuration of the run to estimate.
        number: Number of the device, counted from 0.
        unit: What the progress bar counts.
    """

    config: Config
    number: int
    unit: str = "part"

    def __str__(self) -> str:
        return f"probe-{self.number}"

    @property
    def images(self) -> int:
        """Parts for the progress bar: the first shard of each kind of round, and its timing."""
        return 2 * (1 + min(1, self.config.adaptive.rounds))

    @property
    def compiles(self) -> bool:
        """Whether the first step compiles, for the progress bar."""
        return self.config.compiled and not self.config.synthesis.checkpointing


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceTiming:
    """The measurements of one device.

    Attributes:
        speeds: Speed in each round.
        step: Seconds of one step of a batch.
        write: Seconds to judge, encode and write one image.
        memory: Peak memory in bytes, of the GPU or, on a CPU, of the process.
    """

    speeds: list[RoundSpeed]
    step: float
    write: float
    memory: int


def probe_devices(config: Config) -> list[DeviceTiming]:
    """Measure all devices that ``config.execution`` names, at the same time.

    Raises:
        UserError: The teacher or a device cannot be used.
    """
    load_checked_teacher(config)
    with open_executor(config, config.synthesis.threads) as executor:
        jobs = [ProbeJob(config, number) for number in range(executor.workers)]
        return local_runner(executor, retries=0)(probe, jobs, "probe")


def describe_timing(timings: list[DeviceTiming], plan: Plan) -> list[str]:
    """Describe the measurements in lines of text.

    The step is that of the slowest device. All other times are means over the devices.

    Args:
        timings: Measurements of devices that worked at the same time.
        plan: The plan of the dataset.
    """
    step = max(timing.step for timing in timings)
    memory = show_bytes(max(timing.memory for timing in timings))
    write = float(np.mean([timing.write for timing in timings]))
    lines = [
        f"measured on {counted(len(timings), 'device')} at once: "
        f"{step:.3g} s for each step of a batch, {write:.2g} s to judge and write each image, "
        f"{memory} of memory"
    ]
    for number, speed in enumerate(mean_speeds(timings)[:2]):
        text = f"{'an adaptive round' if number else 'round 0'}: {1 / speed.image:.3g} images/s"
        images = len(plan.shard(plan.of_round(number).start).labels)
        shard = f"{show_seconds(images * speed.image)} for a shard of {images} images"
        student = f", {show_seconds(speed.student)} for its student" if number else ""
        lines.append(
            f"{text} for each device, {shard}, {show_seconds(speed.start)} to start{student}"
        )
    return lines


def probe(job: ProbeJob, device: str, report: Callable[[float], None]) -> DeviceTiming:
    """Measure one device: make shards of one batch with few steps, in a temporary directory.

    The time of a step is the difference between shards of more and of fewer steps. The remaining
    time of a shard is for judging, encoding and writing. The first shard takes longer, because it
    loads and compiles; the difference is the start. The peak memory equals that of a full run,
    whose batches have this size and follow one another.

    Args:
        job: What to measure.
        device: ``cpu`` or ``cuda``.
        report: Called with 1 after the first shard of a round, and after its timing.
    """
    rounds = job.config.adaptive.rounds
    with tempfile.TemporaryDirectory() as place:
        small = _one_batch(job.config, Path(place), min(rounds, 1))
        teacher = load_checked_teacher(small)
        watches = [Stopwatch(device, report) for _ in range(small.adaptive.rounds + 1)]
        for number, watch in enumerate(watches):
            synthesize(small, teacher, watch.run, range(number, number + 1))
    first, *later = watches
    return DeviceTiming(
        speeds=[watch.speed(job.config) for watch in (first, *later * rounds)],
        step=first.step / first.batches,
        write=first.base / first.images,
        memory=peak_memory(device),
    )


def mean_speeds(timings: list[DeviceTiming]) -> list[RoundSpeed]:
    """Average the speed in each round over devices that worked at the same time."""
    return [
        RoundSpeed(
            image=float(np.mean([speed.image for speed in speeds])),
            start=float(np.mean([speed.start for speed in speeds])),
            student=float(np.mean([speed.student for speed in speeds])),
        )
        for speeds in zip(*(timing.speeds for timing in timings), strict=True)
    ]


def _one_batch(config: Config, place: Path, rounds: int) -> Config:
    """Reduce a configuration to one batch for each round.

    All limits that would make the probe try an image again are off.
    """
    batch = plan_of(config).shard(0).batches[0]
    # Round 0 must also have enough images for one batch of the student.
    students = config.adaptive.training.for_images(len(plan_of(config).labels))
    images = max(batch.size, rounds * students.batch_size)
    synthesis = {
        "images": images,
        "images_per_class": None,
        "shard_size": images,
        "batch_size": max(2, batch.candidates),
        "iterations": 0,
        "compile": config.compiled,
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
