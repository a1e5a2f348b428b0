"""The command line, ``python -m pipeline COMMAND``: see ``--help`` for the commands.

Exit codes: 0 done, 1 something failed or is wrong, 2 bad input (one line on stderr), 130 stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from pipeline.commands import (
    run_distill,
    run_evaluate,
    run_finalize,
    run_measure,
    run_plan,
    run_probe,
    run_status,
    run_summary,
    run_synthesize,
    run_verify,
)
from pipeline.errors import UserError
from pipeline.exit_codes import report_errors
from pipeline.params import load_params, parse_overrides


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    with report_errors() as outcome:
        options = _parser().parse_args(arguments)
        config = load_params(Path(options.params), parse_overrides(options.set))
        outcome.code = options.command(config, options)
    return outcome.code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m pipeline", description=__doc__)
    parser.set_defaults(set=[])
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, command: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--params", default="params.yaml", metavar="FILE")
        sub.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
        sub.set_defaults(command=command)
        return sub

    tried = add("probe", run_probe, "try the teacher for two minutes and suggest parameters")
    tried.add_argument("--seconds", type=float, default=120.0, help="of short inversions")
    tried.add_argument("--write", action="store_true", help="put the findings into the file")
    planned = add("plan", run_plan, "print what would be made, and what it would cost")
    planned.add_argument("--list", action="store_true", help="every shard")
    planned.add_argument("--devices", type=_count, nargs="+", default=[1], metavar="N")
    speed = planned.add_mutually_exclusive_group()
    speed.add_argument("--probe", action="store_true", help="measure the speed of a device here")
    speed.add_argument("--images-per-second", type=_rate, metavar="X", help="of one device")
    made = add("synthesize", run_synthesize, "make the shards that are missing or stale")
    made.add_argument("--shards", metavar="FIRST:END", help="only these, as in 0:8")
    add("finalize", run_finalize, "write the dataset-level files, once all shard ranges are made")
    checked = add("verify", run_verify, "read everything again and prove it")
    checked.add_argument("--repair", action="store_true", help="make again just what is broken")
    checked.add_argument(
        "--agreement", type=float, default=0.9, help="least share of labels the teacher confirms"
    )
    add("status", run_status, "which shards are complete, running, failed, stale or missing")
    add("distill", run_distill, "train the students on the dataset")
    add("measure", run_measure, "how varied the images are, and what they lack")
    add("evaluate", run_evaluate, "measure teacher and students on real images")
    add("summary", run_summary, "the result, for a person")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of devices")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of images above 0")
    return value
