"""``python -m flows synthesize | distill | dream``: run one flow in this process.

Without a Prefect server the flow starts one for itself. Where every shard and student is complete,
and where the server does not come up, the same work runs without Prefect.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.cli import add_params
from pipeline.config.schema import Config
from pipeline.errors import first_line
from pipeline.exit_codes import report_errors
from pipeline.params import load_command_params, parse_overrides, parse_range
from pipeline.stages.pending import shards_pending, students_pending
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.teacher import Teacher


def main(arguments: Sequence[str] | None = None) -> int:
    """Check parameters and teacher before Prefect starts, then run one flow.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m flows", description=__doc__)
    parser.add_argument("flow", choices=("synthesize", "distill", "dream"))
    add_params(parser)
    parser.add_argument(
        "--shards", metavar="FIRST:END", help="synthesize only these shards, such as 0:8"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="refuse to replace shards and students that other parameters made",
    )
    with report_errors() as outcome:
        options = parser.parse_args(arguments)
        overrides, only = parse_overrides(options.set), parse_range(options.shards)
        config = load_command_params(options.params, overrides)
        # distill only reads the dataset, which may be on a read-only disk.
        outputs = ("reports",) if options.flow == "distill" else ("dataset", "reports")
        teacher = load_checked_teacher(config, *outputs)
        parameters = {"params": options.params, "overrides": overrides}
        work = _work(options.flow, config, teacher, only, options.keep, parameters)
        pending = _is_pending(options.flow, config, teacher, only)
        _run(work, options.flow, config, pending, parameters)
    return outcome.code


def _run(
    work: Callable[[], object],
    name: str,
    config: Config,
    pending: bool,
    parameters: dict[str, Any],
) -> None:
    from httpx import HTTPError

    from flows.running import run_as_flow, run_without_record

    try:
        if pending:
            result = run_as_flow(name, work, parameters, config)
        else:
            result = run_without_record(work)
    except HTTPError as error:
        raise RuntimeError(
            f"Prefect's server stopped answering ({first_line(error)}). Complete shards and "
            "students are kept: run the same command again"
        ) from error
    if isinstance(result, str):
        sys.stdout.write(f"{result}\n")


def _is_pending(name: str, config: Config, teacher: Teacher, only: range | None) -> bool:
    """Whether the flow has a job. Without one it needs no server."""
    return (name != "distill" and shards_pending(config, teacher, only)) or (
        name != "synthesize" and students_pending(config, teacher)
    )


def _work(
    name: str,
    config: Config,
    teacher: Teacher,
    only: range | None,
    keep: bool,
    parameters: dict[str, Any],
) -> Callable[[], object]:
    if name == "synthesize":
        from flows.synthesize import make_shards

        return lambda: make_shards(config, teacher, only, keep)
    if name == "distill":
        from flows.distill import train_students

        return lambda: train_students(config, teacher, keep)
    from flows.dream import run_all_stages

    return lambda: run_all_stages(config, teacher, parameters, keep)
