"""The command probe, which tries the teacher."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from pipeline.config.schema import Config
from pipeline.device.threads import use_threads
from pipeline.errors import UserError
from pipeline.estimation.findings import findings_text, write_findings
from pipeline.estimation.normalisation import (
    describe_distances,
    normalisation_distances,
    read_images,
)
from pipeline.estimation.probe import try_teacher
from pipeline.estimation.stored_speed import write_speed
from pipeline.execution.choice import open_executor
from pipeline.synthesis.check import load_checked_teacher
from pipeline.synthesis.outputs import claim_output


def run_probe(config: Config, options: argparse.Namespace) -> int:
    """Print the findings about the teacher; with ``--write`` put them into the parameter file."""
    if not 0 < options.seconds < math.inf:
        raise UserError(f"--seconds is {options.seconds}: write a time in seconds, as 120")
    teacher = load_checked_teacher(config, "reports")
    real = None if options.images is None else read_images(teacher, Path(options.images))
    with open_executor(config, config.synthesis.threads) as executor:
        workers = executor.workers
    if config.execution.device != "cpu" and torch.cuda.is_available():
        teacher = teacher.to(torch.device("cuda"))
    use_threads(config.synthesis.threads)
    claim_output(config, "reports")
    picture = Path(config.paths.reports) / "probe.png"
    findings = try_teacher(config, teacher, workers, options.seconds, picture)
    for line in findings_text(findings, config, workers):
        print(line)
    distances = normalisation_distances(teacher, real)
    kind = "procedural" if real is None else "real"
    print(f"normalised {describe_distances(distances, kind)}")
    print(f"look at    {picture}")
    write_speed(config, findings.speed)
    if options.write:
        write_findings(Path(options.params), config, findings)
        print(f"written    {options.params}")
    return 0
