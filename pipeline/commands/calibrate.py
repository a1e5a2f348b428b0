"""The command calibrate."""

from __future__ import annotations

import argparse

from pipeline.config.schema import Config
from pipeline.evaluation.calibration import calibrate, describe_calibration
from pipeline.reports.files import report_calibration
from pipeline.synthesis.check import load_checked_teacher


def run_calibrate(config: Config, options: argparse.Namespace) -> int:
    """Write how the quantised teacher differs from the teacher into the reports, and print it."""
    report = calibrate(config, load_checked_teacher(config, "reports"))
    report_calibration(config, report)
    for line in describe_calibration(report):
        print(line)
    return 0
