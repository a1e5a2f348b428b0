"""Measure plan, status and finalize on a dataset of 100,000 shards.

    python -m benchmarks.scale.records [--shards N] [--out FILE.json]

The script makes a dataset directory with a valid record for each shard, by the functions that make
real records. The shards are files of a few bytes, except those that the preview reads, which hold
tiny images. Each command then runs in a new process on its own core. The limits are 60 s of wall
time and 2 GiB of peak memory. The exit code is 1 if a command exceeds one of them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.common import PROJECT, Params, changed, environment, load, parameters
from benchmarks.faults.run import machine, say
from pipeline.dataset.layout import record_name, rows_name, tar_name
from pipeline.dataset.plan import ShardPlan, plan_of
from pipeline.dataset.records import ShardRecord, versions
from pipeline.dataset.tar import Sample, write_tar
from pipeline.storage import digest_json, json_bytes
from pipeline.synthesis.publish_shard import file_facts
from pipeline.synthesis.spec import round_spec, shard_spec

SECONDS, BYTES = 60.0, 2 * 2**30
CLASSES, IMAGES = 1000, 13  # Images of one pixel: as many as ImageNet has, in 100,000 shards.
CURVE_POINTS = 21
TERMS = ("classification", "feature", "iteration", "l2", "total", "tv")
FACTORY = """from torch import nn


def classifier() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, {classes}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="What 100,000 records cost.")
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="records-") as place:
        params = scene(Path(place), options.shards)
        started = time.monotonic()
        make_records(params)
        say(f"{options.shards} records made in {time.monotonic() - started:.0f} s")
        commands = ("plan", "status", "finalize")
        results = {command: measure(Path(place), params, command) for command in commands}
    for command, result in results.items():
        say(
            f"{command:<9} {result['seconds']:6.1f} s ({result['cpu_seconds']:.1f} s of the core) "
            f"{result['peak_bytes'] / 2**20:5.0f} MiB  "
            f"exit {result['code']}, said last: {result['said']}"
        )
    if options.out:
        report = {"shards": options.shards, "machine": machine(), "commands": results}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    held = all(
        r["code"] == 0 and r["seconds"] < SECONDS and r["peak_bytes"] < BYTES
        for r in results.values()
    )
    say("held" if held else "MISSED")
    return 0 if held else 1


def scene(place: Path, shards: int) -> Params:
    """Return parameters of a dataset of ``shards`` shards with 1,000 classes of single pixels."""
    (place / "teacher").mkdir()
    (place / "teacher" / "pixel.py").write_text(FACTORY.format(classes=CLASSES))
    source = f"{place / 'teacher' / 'pixel.py'}:classifier"
    return changed(
        parameters(place),
        {
            "teacher.source": source,
            "teacher.weights": None,
            "teacher.classes": CLASSES,
            "teacher.input": {"channels": 1, "height": 1, "width": 1, "mean": [0.5], "std": [0.2]},
            "student.source": source,
            "student.arguments": {},
            "synthesis.images": shards * IMAGES,
            "synthesis.shard_size": IMAGES,
            "synthesis.batch_size": IMAGES,
            "synthesis.objective": {"feature": 0.0},  # The teacher's BatchNorm was never trained.
            "adaptive.rounds": 0,
        },
    )


def make_records(params: Params) -> None:
    """Write the record of each shard, and the files that it describes."""
    config, digest = load(params)
    root = Path(config.paths.dataset)
    for folder in ("train", "metadata"):
        (root / folder).mkdir(parents=True)
    of_round = round_spec(config, 0, digest, None)
    rng = np.random.default_rng(0)
    shown = 8 * CLASSES // IMAGES + 1  # The preview shows 8 images of each class.
    for shard in plan_of(config):
        files = {
            tar_name(shard.number): _tar(shard) if shard.number <= shown else b"tar",
            rows_name(shard.number): b"rows",
        }
        for name, data in files.items():
            (root / name).write_bytes(data)
        curve = [
            dict(zip(TERMS, (float(f"{value:.6g}") for value in point), strict=True))
            for point in rng.uniform(0.1, 10, (CURVE_POINTS, len(TERMS)))
        ]
        record = record_of(shard, shard_spec(of_round, shard), files, curve)
        (root / record_name(shard.number)).write_bytes(json_bytes(record.to_json()))


def record_of(
    shard: ShardPlan,
    spec: dict[str, Any],
    files: dict[str, bytes],
    curve: list[dict[str, float]],
    agreement: float = 1.0,
    confidence: float = 0.999991,
) -> ShardRecord:
    """The record of a shard that no engine made."""
    labels, counts = np.unique(shard.labels, return_counts=True)
    return ShardRecord.of(
        shard=shard.name,
        round=shard.round,
        first=shard.first,
        images=len(shard.labels),
        spec=spec,
        spec_sha256=digest_json(spec),
        files={name: file_facts(io.BytesIO(data)) for name, data in files.items()},
        class_counts={str(label): int(count) for label, count in zip(labels, counts, strict=True)},
        batches=[batch.size for batch in shard.batches],
        precision="float32",
        agreement=agreement,
        confidence=confidence,
        replaced={},
        flaws={},
        curve=curve,
        versions=versions(),
    )


def _tar(shard: ShardPlan) -> bytes:
    def samples() -> Iterator[Sample]:
        for index, label in enumerate(shard.labels.tolist()):
            pixels = np.full((1, 1, 1), label % 256, dtype=np.uint8)
            yield Sample(shard.key("00000000", index), pixels, label, {"teacher_prob": 0.9})

    file = io.BytesIO()
    write_tar(file, samples())
    return file.getvalue()


# A child's ru_maxrss starts at the parent's value. Its high-water mark starts at zero.
RUN = """import re, sys
from pipeline.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def measure(
    place: Path, params: Params, command: str, argument: str | None = None
) -> dict[str, Any]:
    """Measure wall seconds and peak memory of one command on one core.

    Args:
        place: a folder for the parameter file.
        params: its content.
        command: the command.
        argument: what follows it; None for the option that names the parameter file.
    """
    (place / "params.yaml").write_text(json.dumps(params))
    words = ["--params", str(place / "params.yaml")] if argument is None else [argument]
    core = min(os.sched_getaffinity(0))
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [sys.executable, "-c", RUN, command, *words],
        cwd=PROJECT,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    *lines, peak = ended.stdout.splitlines() or ["0"]
    said = ended.stderr.splitlines()[-1:] if ended.returncode else lines[-1:]
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_bytes": int(peak) * 1024 if peak.isdecimal() else 0,
        "code": ended.returncode,
        "said": "".join(said)[:100],
    }


if __name__ == "__main__":
    sys.exit(main())
