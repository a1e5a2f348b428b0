"""The commands that make a dataset and count its shards: synthesize, finalize, status."""

from __future__ import annotations

import argparse

from pipeline.config.schema import Config
from pipeline.evaluation.verdict import dataset_verdict
from pipeline.execution.runner import open_runner
from pipeline.params import parse_range
from pipeline.quantities import counted
from pipeline.reports.files import report_synthesis
from pipeline.stages.finalize import finalize
from pipeline.stages.status import dataset_status, describe_status
from pipeline.stages.synthesize import synthesize
from pipeline.synthesis.check import load_checked_teacher


def run_synthesize(config: Config, options: argparse.Namespace) -> int:
    """Make the missing and stale shards; prints how many, and the picture to look at."""
    only = parse_range(options.shards)
    teacher = load_checked_teacher(config, "dataset", "reports")
    with open_runner(config, config.synthesis.threads) as run:
        made = synthesize(config, teacher, run, only, options.keep)
    print(f"made {counted(len(made), 'shard')} in {config.paths.dataset}")
    if only is None:
        verdict = dataset_verdict(config, teacher)
        print(f"images to look at: {report_synthesis(config, made, verdict.report())}")
        print(verdict)
    return 0


def run_finalize(config: Config, options: argparse.Namespace) -> int:
    """Write the index files and the reports."""
    teacher = load_checked_teacher(config, "dataset", "reports")
    finalize(config, teacher)
    verdict = dataset_verdict(config, teacher)
    print(f"images to look at: {report_synthesis(config, [], verdict.report())}")
    print(verdict)
    return 0


def run_status(config: Config, options: argparse.Namespace) -> int:
    """Print how many shards are in which state."""
    teacher = load_checked_teacher(config) if options.teacher else None
    status = dataset_status(config, teacher)
    for line in describe_status(status):
        print(line)
    if teacher is None and "complete" in status.shards:
        print("teacher not compared with the records: `status --teacher` loads it")
    return 0
