"""``python -m flows synthesize | distill | dream``: a flow in this process, server or not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import parse_range, report_errors
from pipeline.config import load_config, parse_overrides
from pipeline.synthesis import check


def main(arguments: Sequence[str] | None = None) -> int:
    """Check everything before Prefect starts, then run one flow; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows", description=__doc__)
    parser.add_argument("flow", choices=("synthesize", "distill", "dream"))
    parser.add_argument("--params", default="params.yaml", metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--shards", metavar="FIRST:END", help="of synthesize: only these")
    with report_errors() as outcome:
        options = parser.parse_args(arguments)
        overrides = parse_overrides(options.set)
        check(load_config(Path(options.params), overrides), "dataset", "reports")
        parse_range(options.shards)
        if options.flow == "synthesize":
            from flows.synthesize import synthesize

            synthesize(options.params, overrides, options.shards)
        elif options.flow == "distill":
            from flows.distill import distill

            distill(options.params, overrides)
        else:
            from flows.dream import dream

            sys.stdout.write(dream(options.params, overrides) + "\n")
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
