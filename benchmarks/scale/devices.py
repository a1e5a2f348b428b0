"""Simulate a large run: the real pipeline, with a sleep instead of the optimiser.

    python -m benchmarks.scale.devices [--devices 8 64 512] [--shards 1280] [--images 1000]
        [--images-per-second 2.5] [--spread 0.05] [--rounds 0] [--student-minutes 30]
        [--seconds 60] [--prefect] [--out FILE.json]

The devices are threads. Plan, listing, records (of small tars) and dataset-level files are real. A
shard sleeps for its computing time divided by a factor, the second column of the table, which makes
the ideal run last ``--seconds``. ``--spread`` is the standard deviation of the computing time over
shards. The table multiplies sleeps by the factor again. All other times are real seconds of this
machine, where two cores work for all devices and events are closer together by the factor. The
reported losses are therefore upper bounds.

Uploads are not simulated. The start of a process (loading torch, compiling) is not either: every
device pays it once and at the same time.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.common import FACTORY
from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.dataset.records import ShardRecord, versions
from pipeline.distillation.job import DistillJob
from pipeline.execution.executor import Work
from pipeline.execution.runner import Runner, local_runner
from pipeline.params import parse_params
from pipeline.quantities import show_seconds
from pipeline.stages.synthesize import synthesize
from pipeline.storage import digest_bytes, digest_json, write_bytes, write_json
from pipeline.synthesis.check import load_checked_teacher
from pipeline.synthesis.job import Made, ShardJob
from pipeline.teachers.teacher import Teacher

CLASSES = 1000
LOSSES = ("waves", "student", "plan", "orchestration", "finalize")


class Threads:
    """Executor whose devices are threads of this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, work: Work, job: Any) -> Any:
        return work(job, "cpu", lambda amount: None)

    def loss(self) -> float | None:
        return None

    def in_flight(self) -> float:
        return 0.0

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """Seconds of a real run on ``devices`` devices: the ideal time, and the losses.

    Attributes:
        waves: Devices had no shard left, or waited for a slow one.
        student: All devices but one waited for a round's student.
        plan: Time before the first shard.
        orchestration: Time between the sleeps while shards were made.
        finalize: Time after the last shard.
    """

    devices: int
    factor: float
    ideal: float
    waves: float
    student: float
    plan: float
    orchestration: float
    finalize: float

    @property
    def wall(self) -> float:
        return self.ideal + float(sum(getattr(self, name) for name in LOSSES))


class Simulation:
    """Runner that replaces the work of each job by a sleep and passes it to another runner."""

    def __init__(self, options: argparse.Namespace, devices: int) -> None:
        self._options, self._devices = options, devices
        images = options.shards * options.images * (options.rounds + 1)
        self.factor = images / options.images_per_second / devices / options.seconds
        self._random = np.random.default_rng(0)
        self.waves, self.student, self.busy, self.slept = 0.0, 0.0, 0.0, 0.0
        self.started, self.ended = 0.0, 0.0

    def around(self, run: Runner) -> Runner:
        devices = self._devices

        def pretending(work: Work, jobs: Sequence[Any], description: str) -> list[Any]:
            began = time.perf_counter()
            self.started = self.started or began
            if isinstance(jobs[0], DistillJob):
                seconds = {str(jobs[0]): 60.0 * self._options.student_minutes}
                self.student += seconds[str(jobs[0])]
            else:
                seconds = self._draw(jobs)
                ideal = sum(seconds.values()) / devices
                self.busy += sum(seconds.values())
                self.waves += makespan(list(seconds.values()), devices) - ideal
            made = run(self._pretend(seconds), jobs, description)
            self.slept += makespan(list(seconds.values()), devices) / self.factor
            self.ended = time.perf_counter()
            return made

        return pretending

    def _draw(self, jobs: Sequence[ShardJob]) -> dict[str, float]:
        """Draw the seconds of each shard on a device of the given speed."""
        spread = self._random.normal(1.0, self._options.spread, len(jobs)).clip(0.5)
        speed = self._options.images_per_second
        return {
            str(job): job.images / speed * float(factor)
            for job, factor in zip(jobs, spread, strict=True)
        }

    def _pretend(self, seconds: dict[str, float]) -> Work:
        def work(job: Any, device: str, report: Callable[[float], None]) -> Any:
            time.sleep(seconds[str(job)] / self.factor)
            if isinstance(job, ShardJob):
                publish(job)
                return Made(job.number, job.images, seconds[str(job)])
            write_bytes(job.output, str(job).encode())
            return {"seconds": seconds[str(job)]}

        return work


def publish(job: ShardJob) -> None:
    """Publish the record of a shard with a small tar and table."""
    root, shard = Path(job.config.paths.dataset), plan_of(job.config).shard(job.number)
    data = str(job).encode() * 100
    facts = {"sha256": digest_bytes(data), "md5": digest_bytes(data)[:32], "size": len(data)}
    names = (f"train/{shard.name}.tar", f"metadata/{shard.name}.parquet")
    for name in names:
        write_bytes(root / name, data)
    point = {"total": 1.0, "classification": 0.1, "tv": 20.0, "l2": 30.0, "feature": 0.01}
    record = ShardRecord.of(
        shard=shard.name,
        round=shard.round,
        first=shard.first,
        images=job.images,
        spec=job.spec,
        spec_sha256=digest_json(job.spec),
        files={name: facts for name in names},
        class_counts={str(label): n for label, n in Counter(shard.labels.tolist()).items()},
        batches=[batch.size for batch in shard.batches],
        precision="float32",
        agreement=1.0,
        confidence=0.9,
        replaced={},
        flaws={},
        curve=[{"iteration": float(index), **point} for index in range(21)],
        versions=versions(),
    )
    write_json(root / "metadata" / f"{shard.name}.json", record.to_json())


def makespan(seconds: Sequence[float], devices: int) -> float:
    """Compute when the last job ends if each job goes to the first free device."""
    free: list[float] = [0.0] * devices
    for length in seconds:
        heapq.heapreplace(free, free[0] + length)
    return float(max(free))


def config_of(options: argparse.Namespace, place: Path) -> Config:
    (place / "tinynet.py").write_text(FACTORY)
    source = {"source": f"{place / 'tinynet.py'}:classifier", "arguments": {"classes": CLASSES}}
    images = options.shards * options.images
    sizes = {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.25]}
    return parse_params(
        {
            "teacher": {**source, "weights": None, "classes": CLASSES, "input": sizes},
            "student": source,
            "synthesis": {
                "images": images,
                "shard_size": options.images,
                "objective": {"feature": 0.0},  # The teacher's BatchNorm was never trained.
            },
            "adaptive": {"rounds": options.rounds, "images": images},
            "paths": {name: str(place / name) for name in ("dataset", "students", "reports")},
        }
    )


def simulate(options: argparse.Namespace, devices: int) -> Lost:
    """Simulate one run, from an empty folder to a finished dataset."""
    simulation = Simulation(options, devices)
    with tempfile.TemporaryDirectory() as place:
        config = config_of(options, Path(place))
        began = time.perf_counter()
        teacher = load_checked_teacher(config)
        if options.prefect:
            _through_prefect(config, teacher, simulation, devices)
        else:
            run = local_runner(Threads(devices), retries=0)
            synthesize(config, teacher, simulation.around(run))
        ended = time.perf_counter()
    return Lost(
        devices=devices,
        factor=simulation.factor,
        ideal=simulation.busy / devices,
        waves=simulation.waves,
        student=simulation.student,
        plan=simulation.started - began,
        orchestration=simulation.ended - simulation.started - simulation.slept,
        finalize=ended - simulation.ended,
    )


def _through_prefect(
    config: Config, teacher: Teacher, simulation: Simulation, devices: int
) -> None:
    """Run with a Prefect task for each shard. Without PREFECT_API_URL a server is started."""
    from prefect import flow

    from flows.running import prefect_runner

    @flow(name="scale", persist_result=False)
    def made() -> int:
        run = prefect_runner(Threads(devices), retries=0)
        return len(synthesize(config, teacher, simulation.around(run)))

    made()


def table(results: Sequence[Lost]) -> str:
    names = ("devices", "factor", "wall time", "of ideal", *LOSSES)
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for lost in results:
        cells = [f"{lost.devices}", f"{lost.factor:.0f}", show_seconds(lost.wall)]
        cells += [f"{lost.ideal / lost.wall:.1%}"]
        cells += [show_seconds(getattr(lost, name)) for name in LOSSES]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="What a large run loses on its way.")
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--shards", type=int, default=1280)
    parser.add_argument("--images", type=int, default=1000, help="images of each shard")
    parser.add_argument(
        "--images-per-second", type=float, default=2.5, help="images per second of each device"
    )
    parser.add_argument("--spread", type=float, default=0.05)
    parser.add_argument(
        "--rounds", type=int, default=0, help="adaptive rounds, as large as round 0"
    )
    parser.add_argument("--student-minutes", type=float, default=30.0)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="duration of the ideal run in this simulation"
    )
    parser.add_argument("--prefect", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = [simulate(options, devices) for devices in options.devices]
    sys.stdout.write(table(results))
    if options.out:
        facts = {
            "options": {**vars(options), "out": None},
            "results": [{**asdict(lost), "wall": lost.wall} for lost in results],
            "load": os.getloadavg(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
