"""The command plan, which counts images, shards, bytes and cost."""

from __future__ import annotations

import argparse
from collections import Counter

from pipeline.config.schema import Config
from pipeline.dataset.plan import Plan, plan_of
from pipeline.estimation.cost import RoundSpeed, cost_table, dataset_bytes, show_bytes
from pipeline.estimation.device_timing import (
    DeviceTiming,
    describe_timing,
    mean_speeds,
    probe_devices,
)
from pipeline.estimation.sample_bytes import sample_bytes
from pipeline.estimation.stored_speed import (
    read_speed,
    read_timings,
    timings_file,
    write_timings,
)
from pipeline.quantities import counted
from pipeline.synthesis.outputs import claim_output


def run_plan(config: Config, options: argparse.Namespace) -> int:
    """Print how many images, shards and bytes there would be, and the time where it is known."""
    planned = plan_of(config)
    _print_size(config, planned)
    if options.list:
        _list_shards(planned, config.teacher.labelled)
    probed = None if options.images_per_second else _timings(config, options.probe)
    if probed is not None:
        print("\n".join(describe_timing(probed, planned)))
        speeds = mean_speeds(probed)
    elif options.images_per_second:
        speeds = [RoundSpeed(image=1 / options.images_per_second)] * (config.adaptive.rounds + 1)
    elif (speed := read_speed(config)) and config.iterations:
        image = config.iterations / speed
        print(f"speed: {1 / image:.3g} images/s for each device, as `probe` measured uncompiled")
        speeds = [RoundSpeed(image=image)] * (config.adaptive.rounds + 1)
    else:
        print("time: measure it with --probe, or name one device's speed with --images-per-second")
        return 0
    print("\n".join(cost_table(planned.bounds, speeds, options.devices)))
    if config.adaptive.rounds and probed is None:
        print("without the students' training between the rounds, which --probe measures")
    return 0


def _timings(config: Config, measure: bool) -> list[DeviceTiming] | None:
    """The measurements for this job: stored ones, else new ones if they are asked for."""
    timings = read_timings(config)
    if timings is not None:
        print(f"stored: {timings_file(config)} (delete it to measure again)")
    elif measure:
        claim_output(config, "reports")
        timings = probe_devices(config)
        write_timings(config, timings)
    return timings


def _print_size(config: Config, planned: Plan) -> None:
    classes, images = config.teacher.classes, len(planned.labels)
    shards = counted(len(planned), "shard")
    if classes:
        print(f"{counted(images, 'image')} of {classes} classes in {shards}")
        counts = Counter(planned.labels.tolist())
        few, many = (pick(counts[c] for c in range(classes)) for pick in (min, max))
        print(f"{few if few == many else f'{few} to {many}'} images a class, seed {planned.seed}")
    else:
        print(f"{counted(images, 'image')} without labels in {shards}, seed {planned.seed}")
    sample = sample_bytes(config)
    total = show_bytes(dataset_bytes(images, len(planned), sample))
    print(f"at most {total} on disk, and to upload: {show_bytes(sample)} an image")


def _list_shards(planned: Plan, labelled: bool) -> None:
    print(f"{'shard':>8} {'round':>5} {'images':>7} {'batches':>8} {'classes':>8}  first image")
    for shard in planned:
        classes = len(set(shard.labels.tolist())) if labelled else 0
        print(
            f"{shard.name:>8} {shard.round:>5} {len(shard.labels):>7} {len(shard.batches):>8} "
            f"{classes:>8}  {shard.first}"
        )
