"""The command line: parses the arguments, then imports and runs one command.

A command's module is imported only when the command runs, so that ``--help`` and ``--version`` load
neither torch nor pydantic.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from pipeline import __version__
from pipeline.command_list import COMMANDS
from pipeline.errors import UserError
from pipeline.exit_codes import report_errors, stopping_at_once

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

DESCRIPTION = """\
Turn a trained image classifier into a class-balanced dataset, without its training data.

A parameter file (params.yaml) describes the teacher and the dataset. `init` writes one,
`synthesize` makes the dataset, `distill` trains students on it."""
EXIT_CODES = """\
exit codes: 0 done; 1 something failed, is wrong, or is in use by another run; 2 wrong input;
129 the terminal was closed, 130 stopped: the same command continues;
141 nothing reads the output any more, as after `| head`"""


def main(arguments: Sequence[str] | None = None, program: str = "dreamshard") -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; None takes those of this process.
        program: the name that help texts and errors show.

    Returns:
        The exit code: 0 done, 1 something failed, 2 wrong input, 129 hung up, 130 stopped, 141 no
        reader.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    with report_errors() as outcome:
        parser = build_parser(program)
        options = _parse(parser, given)
        if options is not None:
            outcome.code = _run_to_its_end(options)
    return outcome.code


def _parse(parser: argparse.ArgumentParser, given: list[str]) -> argparse.Namespace | None:
    """The options; None where the arguments ask for a help text or the version, printed here."""
    try:
        return parser.parse_args(given or ["--help"])
    except SystemExit:
        return None


def _run_to_its_end(options: argparse.Namespace) -> int:
    """Run the command. If a network's code ends the program, that is an error, not success."""
    try:
        return _run(options)
    except SystemExit as error:
        code = "" if error.code is None else f"{error.code!r:.60}"
        raise UserError(
            f"sys.exit({code}) ended {options.command} before its work was done: find the call in "
            "the code of the teacher or the student, and remove it"
        ) from error


def _run(options: argparse.Namespace) -> int:
    module, _, function = options.function.partition(".")
    with stopping_at_once():
        command = getattr(importlib.import_module(f"pipeline.commands.{module}"), function)
        if "params" in options:
            from pipeline.params import load_command_params, parse_overrides
    if "params" not in options:
        return int(command(options))
    config = load_command_params(options.params, parse_overrides(options.set))
    return int(command(config, options))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is not None:  # argparse itself would hide an error of the write
            file.write(message)


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of all commands; ``program`` is the name that its help texts show."""
    parser = _Parser(
        prog=program,
        description=DESCRIPTION,
        epilog=f"`{program} COMMAND --help` explains a command.\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dreamshard {__version__}")
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", parser_class=_Parser, title="commands"
    )
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=f"example: {program} {command.example}",
        )
        sub.set_defaults(function=command.function, command=command.name)
        if command.reads_params:
            add_params(sub)
        if command.add is not None:
            command.add(sub)
    return parser


def add_params(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the parameter file and replace its values."""
    parser.add_argument(
        "--params",
        default="params.yaml",
        metavar="FILE",
        help="the YAML file that describes teacher and dataset (default: params.yaml)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="replace one value of that file for this run, as in synthesis.images=100; may be "
        "repeated",
    )
