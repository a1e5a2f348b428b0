"""A measured moment of the real work: one batch's steps, its shard, a student's steps."""

from __future__ import annotations

import io
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline import sources
from pipeline.adaptive import student_path
from pipeline.config import Config
from pipeline.costs import RoundSpeed, show_bytes, show_seconds
from pipeline.distillation import DistillJob, distill
from pipeline.running import local_runner, open_executor
from pipeline.shards import Sample, write_tar
from pipeline.storage import digest_file
from pipeline.synthesis import Competitor, check, make_shard, plan_of, wanted_jobs

FEWEST, MOST = 2, 100  # steps
ENOUGH = 2.0  # seconds of steps that the measurement is made of, if MOST allows


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """Measure one device. ``number`` tells the jobs of several devices apart."""

    config: Config
    teacher_digest: str
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
    digest = check(config).digest
    with open_executor(config, config.synthesis.threads) as executor:
        jobs = [ProbeJob(config, digest, number) for number in range(executor.workers)]
        return local_runner(executor, retries=0)(probe, jobs, "probe")


def describe(probed: list[Probed]) -> list[str]:
    """What was measured, in words: the slowest device's step and the mean of the rest."""
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
    """Make a shard of one batch a few times, with few steps and in a temporary directory.

    The time that a step takes is the difference between more and fewer steps; what is left is
    judging, encoding and writing. The first shard, which loads and compiles, is the start.
    """
    with tempfile.TemporaryDirectory() as place:
        first, step, write = _probe_round(job, device, Path(place), 0)
        speeds = [first]
        if job.config.adaptive.rounds:
            later, _, _ = _probe_round(job, device, Path(place), 1)
            speeds += [later] * job.config.adaptive.rounds
    report(job.images)
    return Probed(speeds=speeds, step=step, write=write, memory=_peak_memory(device))


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


def _probe_round(
    job: ProbeJob, device: str, place: Path, round_: int
) -> tuple[RoundSpeed, float, float]:
    """The round's speed; seconds of a step of a batch, and of an image beside its steps."""
    layout = plan_of(job.config)
    batch = layout.shard(layout.of_round(round_).start).batches[0].size
    small = _one_batch(job.config, place, batch, round_)
    competitor = _untrained_student(small) if round_ else None

    def seconds(steps: int) -> float:
        synthesis = small.synthesis.model_copy(update={"iterations": steps})
        config = small.model_copy(update={"synthesis": synthesis})
        (shard,) = wanted_jobs(config, job.teacher_digest, round_, competitor)
        return make_shard(shard, device, lambda amount: None).seconds

    start = seconds(FEWEST)
    base, step = _slope(seconds)
    speed = RoundSpeed(
        image=(base + step * job.config.synthesis.iterations) / batch,
        start=max(0.0, start - base - FEWEST * step),
        student=_student_seconds(job, small, device) if round_ else 0.0,
    )
    return speed, step, base / batch


def _one_batch(config: Config, place: Path, batch: int, round_: int) -> Config:
    """The same work on one batch a round, which nothing makes the probe try again."""
    synthesis = {
        "images": batch,
        "images_per_class": None,
        "shard_size": batch,
        "min_confidence": 0.0,
    }
    return config.model_copy(
        update={
            "synthesis": config.synthesis.model_copy(update=synthesis),
            "adaptive": config.adaptive.model_copy(update={"rounds": round_, "images": batch}),
            "paths": config.paths.model_copy(update={"dataset": str(place / "dataset")}),
        }
    )


def _untrained_student(config: Config) -> Competitor:
    path = student_path(Path(config.paths.dataset), 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    student = sources.build_network(config.student.source, config.student.arguments, "student")
    save_file(student.state_dict(), path)
    return Competitor(path, digest_file(path))


def _student_seconds(job: ProbeJob, small: Config, device: str) -> float:
    """What it takes to train the student of a round, from some steps on copies of one shard."""
    root, training = Path(small.paths.dataset), job.config.adaptive.training
    copies = -(-training.batch_size // small.adaptive.images)

    def seconds(steps: int) -> float:
        some = DistillJob(
            name=f"{steps} steps",
            teacher=small.teacher,
            teacher_digest=job.teacher_digest,
            student=small.student,
            training=training.model_copy(update={"steps": steps}),
            shards=(root / "train" / "000001.tar",) * copies,
            dataset=job.teacher_digest,
            seed=0,
            output=root / "students" / f"{steps}.safetensors",
        )
        return distill(some, device, lambda amount: None)["seconds"]

    base, step = _slope(seconds)
    return base + step * training.steps


def _slope(seconds: Callable[[int], float]) -> tuple[float, float]:
    """Seconds beside the steps, and of a step, of something that ``seconds(steps)`` times."""
    few, more = seconds(FEWEST), FEWEST
    difference = 0.0
    while difference < ENOUGH and more < MOST:
        more = min(MOST, 4 * more)
        difference = seconds(FEWEST + more) - few
    step = max(0.0, difference) / more
    return max(0.0, few - FEWEST * step), step


def _peak_memory(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
