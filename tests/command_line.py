"""Run a command in this process and read what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from tests.conftest import Params, changed, dataset, tree, write_params


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that exits with 2 and prints nothing else."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("dreamshard: ")
    return err


def refused_with(
    capsys: pytest.CaptureFixture[str], tiny: Params, changes: dict[str, Any], path: Path
) -> str:
    write_params(changed(tiny, changes), path)
    commands = (["synthesize"], ["status", "--teacher"], ["verify"], ["distill"], ["evaluate"])
    errors = {refused(capsys, *command, "--params", str(path)) for command in commands}
    assert len(errors) == 1
    assert not dataset(tiny).exists() or tree(dataset(tiny)) == {}
    return errors.pop()


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    capsys.readouterr()
    assert main(arguments) == code
    return capsys.readouterr().out.splitlines()
