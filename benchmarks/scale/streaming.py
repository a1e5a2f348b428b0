"""Compare a student that streams its shards with one whose images are in memory: steps per second.

    python -m benchmarks.scale.streaming [--steps 24] [--pairs 7] [--threads 2] [--batch 128]
        [--eager]

A ResNet-20 learns from a ResNet-20 on 4,096 images of 32 x 32 in 4 shards. The script writes them
to a temporary directory. An image is white noise on a low-frequency pattern, so that its PNG is as
large as that of a synthetic image. Three sources run in alternation, in a different order each
time:

- memory: a list of decoded batches
- stream: every image is read from its tar and decoded in every epoch, as for a large dataset
- kept: the default; a dataset that fits into memory is read and decoded once
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.engine.loop import SHAPE, make_teacher
from examples.cifar10 import resnet
from pipeline.config.distillation import DistillationConfig
from pipeline.dataset.stream import ImageStream
from pipeline.dataset.tar import Sample, write_tar
from pipeline.device.threads import use_threads
from pipeline.distillation.step import Training
from pipeline.storage import replacing, write_json

SHARDS, IMAGES = 4, 1024


def write_shards(directory: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [directory / f"{number:06d}.tar" for number in range(SHARDS)]
    for number, path in enumerate(paths):
        coarse = rng.integers(0, 200, (IMAGES, SHAPE[0], 4, 4)).repeat(8, 2).repeat(8, 3)
        pixels = (coarse + rng.integers(0, 24, (IMAGES, *SHAPE))).astype(np.uint8)
        samples = (
            Sample(f"{number * IMAGES + index:09d}", image, index % 10, {"cls": index % 10})
            for index, image in enumerate(pixels)
        )
        with replacing(path) as file:
            write_tar(file, samples)
    return paths


def sources(shards: list[Path], batch: int) -> dict[str, Iterator[Tensor]]:
    """Return endless iterators over batches of pixels, one for each source."""

    def stream(keep: int) -> Iterator[Tensor]:
        images = ImageStream(shards, batch, shuffle=2000, seed=0, keep=keep)
        return (pixels for _, (pixels, _) in images.endless(0, 0))

    memory = [pixels for pixels, _ in ImageStream(shards, batch, shuffle=2000, seed=0).epoch(0)]
    return {"memory": cycle(memory), "stream": stream(0), "kept": stream(SHARDS * IMAGES)}


def measure(options: argparse.Namespace, shards: list[Path]) -> dict[str, list[float]]:
    """Measure the steps per second of each source, one value for each pair."""
    config = DistillationConfig(
        batch_size=options.batch,
        precision="float32" if options.eager else "auto",
        compile=not options.eager,
        procedural=0.0,
        adversarial=0.0,
    )
    torch.manual_seed(0)
    training = Training(make_teacher(), resnet(3), config, 0)
    feeds = sources(shards, options.batch)
    warm_up = (
        SHARDS * IMAGES // options.batch
    )  # One epoch, after which the kept images are in memory.
    for name, feed in feeds.items():
        for pixels in islice(feed, 3 if name != "kept" else warm_up):
            if name != "kept":
                training.step(0, pixels)
    rates: dict[str, list[float]] = {name: [] for name in feeds}
    for pair in range(options.pairs):
        names = list(feeds)
        for name in names[pair % 3 :] + names[: pair % 3]:
            started = time.perf_counter()
            for number, pixels in enumerate(islice(feeds[name], options.steps)):
                training.step(number, pixels)
            rates[name].append(options.steps / (time.perf_counter() - started))
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--eager", action="store_true", help="float32, not compiled")
    options = parser.parse_args()
    use_threads(options.threads)
    with tempfile.TemporaryDirectory() as directory:
        rates = measure(options, write_shards(Path(directory)))
    report: dict[str, Any] = {
        "sources": {name: summarise(values, rates["memory"]) for name, values in rates.items()},
        "options": vars(options),
        "load": [round(value, 2) for value in os.getloadavg()],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }
    write_json(Path("reports/benchmarks/streaming.json"), report)
    for name, row in report["sources"].items():
        sys.stdout.write(
            f"{name:8} {row['steps_per_second']:7.2f} steps/s  {row['of_memory']:7.1%} of memory "
            f"({row['range'][0]:.1%} to {row['range'][1]:.1%})\n"
        )
    sys.stdout.write(f"load {report['load']}, {report['machine']}, torch {report['torch']}\n")
    return 0


def summarise(values: list[float], memory: list[float]) -> dict[str, float | list[float]]:
    """Compute the median rate, and the median and range of the ratio to memory."""
    ratios = [value / base for value, base in zip(values, memory, strict=True)]
    return {
        "steps_per_second": round(statistics.median(values), 3),
        "of_memory": round(statistics.median(ratios), 4),
        "range": [round(min(ratios), 4), round(max(ratios), 4)],
    }


if __name__ == "__main__":
    sys.exit(main())
