"""What each command of the command line does."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.dataset.plan import Plan
from pipeline.device.threads import use_threads
from pipeline.errors import UserError
from pipeline.params import parse_range


def run_probe(config: Config, options: argparse.Namespace) -> int:
    import torch

    from pipeline.estimation.probe import findings_text, try_teacher, write_findings
    from pipeline.execution.runner import open_executor
    from pipeline.synthesis.check import load_checked_teacher

    if not 0 < options.seconds < math.inf:
        raise UserError(f"--seconds is {options.seconds}: write a time, as 120")
    teacher = load_checked_teacher(config, "reports")
    with open_executor(config, config.synthesis.threads) as executor:
        workers = executor.workers
    wanted = config.execution.device
    if wanted != "cpu" and torch.cuda.is_available():
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
    from pipeline.dataset.plan import plan_of
    from pipeline.estimation.cost import RoundSpeed, cost_table, dataset_bytes, show_bytes
    from pipeline.estimation.device_timing import (
        describe_timing,
        mean_speeds,
        probe_devices,
        sample_bytes,
    )

    layout = plan_of(config)
    print(
        f"{len(layout.labels)} images of {config.teacher.classes} classes in {len(layout)} shards"
    )
    counts = Counter(layout.labels.tolist())
    few, many = (pick(counts[c] for c in range(config.teacher.classes)) for pick in (min, max))
    print(f"{few if few == many else f'{few} to {many}'} images a class, seed {layout.seed}")
    sample = sample_bytes(config)
    total = show_bytes(dataset_bytes(len(layout.labels), len(layout), sample))
    print(f"at most {total} on disk, and to upload: {show_bytes(sample)} an image")
    if options.list:
        _list_shards(layout)
    if options.probe:
        probed = probe_devices(config)
        print("\n".join(describe_timing(probed, layout)))
        speeds = mean_speeds(probed)
    elif options.images_per_second:
        speeds = [RoundSpeed(image=1 / options.images_per_second)] * (config.adaptive.rounds + 1)
    else:
        print("time: measure it here with --probe, or give one device's --images-per-second")
        return 0
    print("\n".join(cost_table(layout.bounds, speeds, options.devices)))
    if config.adaptive.rounds and not options.probe:
        print("without the students' training between the rounds, which --probe measures")
    return 0


def _list_shards(layout: Plan) -> None:
    print(f"{'shard':>8} {'round':>5} {'images':>7} {'batches':>8} {'classes':>8}  first key")
    for shard in layout:
        classes = len(set(shard.labels.tolist()))
        print(
            f"{shard.name:>8} {shard.round:>5} {len(shard.labels):>7} {len(shard.batches):>8} "
            f"{classes:>8}  {shard.key(0)}"
        )


def run_synthesize(config: Config, options: argparse.Namespace) -> int:
    from pipeline.execution.runner import open_runner
    from pipeline.reports.files import report_synthesis
    from pipeline.stages.synthesize import synthesize
    from pipeline.synthesis.check import load_checked_teacher

    only = parse_range(options.shards)
    teacher = load_checked_teacher(config, "dataset", "reports")
    with open_runner(config, config.synthesis.threads) as run:
        made = synthesize(config, teacher, run, only)
    print(f"made {len(made)} shards in {config.paths.dataset}")
    if only is None:
        print(f"images to look at: {report_synthesis(config, made)}")
    return 0


def run_finalize(config: Config, options: argparse.Namespace) -> int:
    from pipeline.reports.files import report_synthesis
    from pipeline.stages.synthesize import finalize
    from pipeline.synthesis.check import load_checked_teacher

    finalize(config, load_checked_teacher(config, "dataset", "reports"))
    print(f"images to look at: {report_synthesis(config, [])}")
    return 0


def run_verify(config: Config, options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pipeline.dataset.plan import plan_of
    from pipeline.execution.runner import open_runner
    from pipeline.stages.repair import repair
    from pipeline.stages.verify import verify
    from pipeline.synthesis.check import load_checked_teacher

    if not 0 <= options.agreement <= 1:
        raise UserError(f"--agreement is {options.agreement}: write a share, as 0.9")
    teacher = load_checked_teacher(config)
    total = len(plan_of(config).labels)

    def verified() -> bool:
        with tqdm(total=total, desc="verify", unit="img") as bar:
            problems = verify(config, teacher, options.agreement, bar.update)
        for problem in problems:
            print(problem)
        print(f"{len(problems)} problems" if problems else f"{total} images verified")
        return not problems

    if verified():
        return 0
    if not options.repair:
        return 1
    with open_runner(config, config.synthesis.threads) as run:
        for name in repair(config, teacher, run):
            print(f"made again: {name}")
    return 0 if verified() else 1


def run_status(config: Config, options: argparse.Namespace) -> int:
    from pipeline.stages.status import dataset_status, describe_status
    from pipeline.synthesis.check import load_checked_teacher

    for line in describe_status(dataset_status(config, load_checked_teacher(config).digest)):
        print(line)
    return 0


def run_distill(config: Config, options: argparse.Namespace) -> int:
    from pipeline.execution.runner import open_runner
    from pipeline.execution.torchrun import is_first, joined
    from pipeline.reports.files import report_distillation
    from pipeline.stages.distill import distill_students
    from pipeline.synthesis.check import load_checked_teacher

    with joined(config.execution.device) as rank_device:
        teacher = load_checked_teacher(config)
        with open_runner(
            config, config.distillation.threads, rank_device, ("dataset", "students")
        ) as run:
            trained = distill_students(config, teacher, run)
        if is_first():
            report_distillation(config, trained)
            print(f"trained {len(trained)} students in {config.paths.students}")
    return 0


def run_measure(config: Config, options: argparse.Namespace) -> int:
    from pipeline.evaluation.dataset_measures import measure
    from pipeline.reports.files import report_measures
    from pipeline.synthesis.check import load_checked_teacher

    report, pairs = measure(config, load_checked_teacher(config))
    path = report_measures(config, report, pairs)
    for name, value in report.items():
        print(f"{name:<30} {value}")
    print(f"most alike pairs: {path}")
    return 0


def run_evaluate(config: Config, options: argparse.Namespace) -> int:
    from pipeline.evaluation.accuracy import evaluate
    from pipeline.reports.files import report_evaluation
    from pipeline.synthesis.check import load_checked_teacher

    report = evaluate(config, load_checked_teacher(config))
    report_evaluation(config, report)
    return 0


def run_summary(config: Config, options: argparse.Namespace) -> int:
    from pipeline.reports.files import summarise

    print(summarise(config))
    return 0
