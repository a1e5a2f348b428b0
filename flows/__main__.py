"""``python -m flows synthesize | distill | dream``: a flow in this process, server or not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.exit_codes import report_errors
from pipeline.params import load_config, parse_overrides, parse_range
from pipeline.synthesis.check import load_checked_teacher


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
        # A dataset is only read by `distill`, and may lie where nothing can be written.
        outputs = ("reports",) if options.flow == "distill" else ("dataset", "reports")
        load_checked_teacher(load_config(Path(options.params), overrides), *outputs)
        parse_range(options.shards)
        _run(options.flow, options.params, overrides, options.shards)
    return outcome.code


def _run(flow: str, params: str, overrides: dict[str, Any], shards: str | None) -> None:
    from httpx import HTTPError

    try:
        if flow == "synthesize":
            from flows.synthesize import synthesize

            synthesize(params, overrides, shards)
        elif flow == "distill":
            from flows.distill import distill

            distill(params, overrides)
        else:
            from flows.dream import dream

            sys.stdout.write(dream(params, overrides) + "\n")
    except HTTPError as error:
        raise RuntimeError(
            f"Prefect's server does not answer ({error}); what is complete is kept: "
            "run the same command again"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
