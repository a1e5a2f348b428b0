"""Measure `dreamshard report` on a dataset of 100,000 images.

    python -m benchmarks.scale.report [--images N] [--classes N] [--side PIXELS] [--out FILE.json]

The script writes tars, Parquet rows and records by the functions that make real ones, with random
images, and the reports of the stages. Then the command runs in a new process on one core. The
limits are 60 s of wall time, 2 GiB of peak memory and 3 MB for the page. The exit code is 1 if the
command exceeds one of them.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.faults.common import Params, changed, load, parameters
from benchmarks.faults.run import machine, say
from benchmarks.scale.records import (
    BYTES,
    CURVE_POINTS,
    FACTORY,
    SECONDS,
    TERMS,
    measure,
    record_of,
)
from pipeline.config.schema import Config
from pipeline.dataset.layout import record_name, rows_name, tar_name
from pipeline.dataset.plan import ShardPlan, plan_of
from pipeline.dataset.records import SCHEMA, ShardRecord, encode_rows
from pipeline.dataset.tar import Sample, write_tar
from pipeline.reports.files import PAGE
from pipeline.storage import json_bytes, write_json
from pipeline.synthesis.outputs import claim_output
from pipeline.synthesis.spec import round_spec, shard_spec

PAGE_BYTES = 3_000_000
SHARD = 1000
DISTINCT = 64  # images of a dataset that differ: encoding is not what is measured


def main() -> int:
    parser = argparse.ArgumentParser(description="What the page of 100,000 images costs.")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="report-") as place:
        params = scene(Path(place), options.images, options.classes, options.side)
        started = time.monotonic()
        make_dataset(params)
        say(f"{options.images} images made in {time.monotonic() - started:.0f} s")
        finalize = measure(Path(place), params, "finalize")
        result = measure(Path(place), params, "report", str(Path(place) / "params.yaml"))
        page = Path(params["paths"]["reports"]) / PAGE
        result["page_bytes"] = page.stat().st_size if page.exists() else 0
    say(
        f"{result['seconds']:.1f} s ({result['cpu_seconds']:.1f} s of the core), "
        f"{result['peak_bytes'] / 2**20:.0f} MiB, a page of {result['page_bytes'] / 1e6:.2f} MB, "
        f"exit {result['code']}, said last: {result['said']}"
    )
    if options.out:
        facts = {"images": options.images, "classes": options.classes, "side": options.side}
        report = {**facts, "machine": machine(), "report": result, "finalize": finalize}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    held = (
        finalize["code"] == result["code"] == 0
        and result["seconds"] < SECONDS
        and result["peak_bytes"] < BYTES
        and result["page_bytes"] < PAGE_BYTES
    )
    say("held" if held else "MISSED")
    return 0 if held else 1


def scene(place: Path, images: int, classes: int, side: int) -> Params:
    """Parameters of a dataset of colour images whose teacher sees one pixel of each."""
    (place / "teacher").mkdir()
    text = FACTORY.format(classes=classes)
    text = text.replace("nn.BatchNorm2d(1)", "nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d(1)")
    (place / "teacher" / "pixel.py").write_text(text)
    source = f"{place / 'teacher' / 'pixel.py'}:classifier"
    size = {"channels": 3, "height": side, "width": side, "mean": [0.5] * 3, "std": [0.2] * 3}
    return changed(
        parameters(place),
        {
            "teacher.source": source,
            "teacher.weights": None,
            "teacher.classes": classes,
            "teacher.input": size,
            "student.source": source,
            "student.arguments": {},
            "synthesis.images": images,
            "synthesis.shard_size": SHARD,
            "synthesis.batch_size": SHARD,
            "adaptive.rounds": 0,
        },
    )


def make_dataset(params: Params) -> None:
    """Write every shard with its record, and the reports of the stages."""
    config, digest = load(params)
    root, size = Path(config.paths.dataset), config.teacher.input
    for folder in ("train", "metadata"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (DISTINCT, 3, size.height, size.width), dtype=np.uint8)
    of_round = round_spec(config, 0, digest, None)
    for shard in plan_of(config):
        spec = shard_spec(of_round, shard)
        files = _files(config, shard, spec["keys"], images, rng)
        for name, data in files.items():
            (root / name).write_bytes(data)
        record = _record(shard, spec, files, rng)
        (root / record_name(shard.number)).write_bytes(json_bytes(record.to_json()))
    _write_reports(config)


def _files(
    config: Config,
    shard: ShardPlan,
    prefix: str,
    images: NDArray[np.uint8],
    rng: np.random.Generator,
) -> dict[str, bytes]:
    tar = io.BytesIO()
    labels = shard.labels.tolist()
    samples = (
        Sample(shard.key(prefix, index), images[index % DISTINCT], label, {"teacher_prob": 0.9})
        for index, label in enumerate(labels)
    )
    members = write_tar(tar, samples)
    sure, other = rng.beta(8, 1, len(labels)), rng.integers(0, config.teacher.classes, len(labels))
    rows = []
    for index, (label, member) in enumerate(zip(labels, members, strict=True)):
        row: dict[str, Any] = {field.name: None if field.nullable else 0 for field in SCHEMA}
        row |= {name: 0.5 for name in row if name.startswith(("loss_", "factor_"))}
        row |= {
            "key": shard.key(prefix, index),
            "shard": f"{shard.name}.tar",
            "index": index,
            "offset": member.offset,
            "size": member.size,
            "sha256": bytes.fromhex(member.sha256),
            "cls": label,
            "class_name": str(label),
            "height": images.shape[2],
            "width": images.shape[3],
            "flaw": "duplicate" if rng.random() < 0.01 else None,
            "teacher_pred": int(other[index]) if sure[index] < 0.5 else label,
            "teacher_prob": float(sure[index]),
            "teacher_entropy": 0.1,
        }
        rows.append(row)
    return {tar_name(shard.number): tar.getvalue(), rows_name(shard.number): encode_rows(rows, {})}


def _record(
    shard: ShardPlan, spec: dict[str, Any], files: dict[str, bytes], rng: np.random.Generator
) -> ShardRecord:
    points = np.sort(rng.uniform(0.1, 10, (CURVE_POINTS, len(TERMS))), axis=0)[::-1]
    curve = [
        {"iteration": 10 * number, **dict(zip(TERMS, map(float, point), strict=True))}
        for number, point in enumerate(points)
    ]
    return record_of(shard, spec, files, curve, agreement=0.99, confidence=0.88)


def _write_reports(config: Config) -> None:
    reports, classes = Path(config.paths.reports), config.teacher.classes
    claim_output(config, "reports")
    write_json(reports / "measures.json", {"images": 20_000, "near_duplicates": 0.01})
    lines = [
        f"{model},{label},{(label * step) % classes},{images}"
        for model in ("teacher", "student-0", "student-1")
        for label in range(classes)
        for step, images in ((1, 40), (3, 6), (7, 4))
    ]
    (reports / "confusion.csv").write_text("\n".join(["model,label,predicted,images", *lines]))


if __name__ == "__main__":
    sys.exit(main())
