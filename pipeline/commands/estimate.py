"""The commands that make nothing: probe tries the teacher, plan counts images and cost."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path

import torch

from pipeline.config.schema import Config
from pipeline.dataset.plan import Plan, plan_of
from pipeline.device.threads import use_threads
from pipeline.errors import UserError
from pipeline.estimation.cost import RoundSpeed, cost_table, dataset_bytes, show_bytes
from pipeline.estimation.device_timing import (
    describe_timing,
    mean_speeds,
    probe_devices,
    sample_bytes,
)
from pipeline.estimation.probe import findings_text, try_teacher, write_findings
from pipeline.execution.runner import open_executor
from pipeline.synthesis.check import load_checked_teacher


def run_probe(config: Config, options: argparse.Namespace) -> int:
    """Print the findings about the teacher; with ``--write`` put them into the parameter file."""
    if not 0 < options.seconds < math.inf:
        raise UserError(f"--seconds is {options.seconds}: write a time in seconds, as 120")
    teacher = load_checked_teacher(config, "reports")
    with open_executor(config, config.synthesis.threads) as executor:
        workers = executor.workers
    if config.execution.device != "cpu" and torch.cuda.is_available():
        teacher = teacher.to(torch.device("cuda"))
    use_threads(config.synthesis.threads)
    picture = Path(config.paths.reports) / "probe.png"
    findings = try_teacher(config, teacher, workers, options.seconds, picture)
    for line in findings_text(findings, config, workers):
        print(line)
    print(f"look at    {picture}")
    if options.write:
        write_findings(Path(options.params), config, findings)
        print(f"written    {options.params}")
    return 0


def run_plan(config: Config, options: argparse.Namespace) -> int:
    """Print how many images, shards and bytes there would be, and the time where it is known."""
    planned = plan_of(config)
    _print_size(config, planned)
    if options.list:
        _list_shards(planned)
    if options.probe:
        probed = probe_devices(config)
        print("\n".join(describe_timing(probed, planned)))
        speeds = mean_speeds(probed)
    elif options.images_per_second:
        speeds = [RoundSpeed(image=1 / options.images_per_second)] * (config.adaptive.rounds + 1)
    else:
        print("time: measure it with --probe, or name one device's speed with --images-per-second")
        return 0
    print("\n".join(cost_table(planned.bounds, speeds, options.devices)))
    if config.adaptive.rounds and not options.probe:
        print("without the students' training between the rounds, which --probe measures")
    return 0


def _print_size(config: Config, planned: Plan) -> None:
    classes, images = config.teacher.classes, len(planned.labels)
    print(f"{images} images of {classes} classes in {len(planned)} shards")
    counts = Counter(planned.labels.tolist())
    few, many = (pick(counts[c] for c in range(classes)) for pick in (min, max))
    print(f"{few if few == many else f'{few} to {many}'} images a class, seed {planned.seed}")
    sample = sample_bytes(config)
    total = show_bytes(dataset_bytes(images, len(planned), sample))
    print(f"at most {total} on disk, and to upload: {show_bytes(sample)} an image")


def _list_shards(planned: Plan) -> None:
    print(f"{'shard':>8} {'round':>5} {'images':>7} {'batches':>8} {'classes':>8}  first image")
    for shard in planned:
        classes = len(set(shard.labels.tolist()))
        print(
            f"{shard.name:>8} {shard.round:>5} {len(shard.labels):>7} {len(shard.batches):>8} "
            f"{classes:>8}  {shard.first}"
        )
