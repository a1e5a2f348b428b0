"""Write the page of one or two runs. A file of another program is never replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.params import load_command_params
from pipeline.reports.files import PAGE
from pipeline.reports.page.comparison import render_comparison
from pipeline.reports.page.page import render_run
from pipeline.reports.page.run import (
    Run,
    is_params,
    located,
    open_run,
    run_of_config,
    verify_command,
)
from pipeline.storage import write_bytes
from pipeline.synthesis.outputs import claim_output

COMPARISON = "comparison.html"
_OURS = b'<meta name="generator" content="dreamshard'
_HEAD = 2**12  # bytes of a page in which the line above stands


def write_page(config: Config, verify: str = "dreamshard verify") -> Path:
    """Write ``index.html`` into ``paths.reports``, from the records and reports that exist.

    Args:
        config: the parameters of the run.
        verify: the command that verifies the dataset, which the page quotes.

    Returns:
        The page.

    Raises:
        UserError: no shard is complete, or a report or a shard is damaged.
    """
    run = run_of_config(config, "", verify)
    claim_output(config, "reports")
    path = Path(config.paths.reports) / PAGE
    write_bytes(path, render_run(run))
    return path


def write_report(names: Sequence[str], settings: Mapping[str, Any], out: Path | None) -> Path:
    """Write the page of one run, or of two.

    Args:
        names: one or two parameter files, datasets or students.
        settings: replace parameters of the first name, if it is a parameter file.
        out: the page to write. None: ``index.html`` or ``comparison.html`` in the reports of the
            first name if it is a parameter file, else in the current folder.

    Returns:
        The page.

    Raises:
        UserError: a name is wrong, the page cannot be made, or a file of another program has the
            name of the page.
    """
    first = names[0]
    if settings and not is_params(first):
        raise UserError(
            f"--set changes a parameter file, but {first} is none: leave out --set, or name a "
            ".yaml file"
        )
    config = (
        located(load_command_params(first, settings), Path(first)) if is_params(first) else None
    )
    if len(names) == 1 and config is not None and out is None:
        return write_page(config, verify_command(first, settings))
    runs = [open_run(first, config), *(open_run(name) for name in names[1:])]
    page = render_run(_with_images(first, runs[0])) if len(runs) == 1 else render_comparison(*runs)
    path = out or _place(config) / (PAGE if len(runs) == 1 else COMPARISON)
    _check(path)
    write_bytes(path, page)
    return path


def _with_images(name: str, run: Run) -> Run:
    if run.dataset is None:
        raise UserError(f"{name} is a student: name a second one to compare it with")
    return run


def _place(config: Config | None) -> Path:
    if config is None:
        return Path()
    claim_output(config, "reports")
    return Path(config.paths.reports)


def _check(path: Path) -> None:
    """Refuse to replace a file that this project did not write."""
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"{path} is not a file: name another file by --out")
    with path.open("rb") as file:
        if _OURS not in file.read(_HEAD):
            raise UserError(f"{path} is not a page of dreamshard: name another file by --out")
