"""The command report."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.params import parse_overrides
from pipeline.reports.page.write import write_report


def run_report(options: argparse.Namespace) -> int:
    """Write the page of one run, or of two next to each other, and print where it is."""
    names = [name for name in (options.a, options.b) if name is not None]
    out = None if options.out is None else Path(options.out)
    print(write_report(names, parse_overrides(options.set), out))
    return 0
