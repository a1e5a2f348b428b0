"""`distill` says which students it replaces and why, and --keep refuses."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from flows.command_line import main as flow
from pipeline import distill as api_distill
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.params import parse_params
from tests.conftest import Params, changed, tree, write_blobs, write_params

STEPS = {"distillation.steps": 5}


@pytest.fixture
def trained_students(made: Params) -> Params:
    """Parameters whose students 0 and 1 were trained already."""
    params = changed(made, {"distillation.seeds": [0, 1], "evaluation.held_out": 0})
    api_distill(parse_params(params))
    return params


def students(params: Params) -> Path:
    return Path(params["paths"]["students"])


def test_what_is_trained_again_is_said_with_its_reason(
    trained_students: Params, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        api_distill(parse_params(trained_students))
        (students(trained_students) / "student-0.safetensors").unlink()
        api_distill(parse_params(trained_students), keep=True)  # the same student again
    assert "other parameters" not in caplog.text
    with caplog.at_level(logging.WARNING):
        api_distill(parse_params(changed(trained_students, {**STEPS, "distillation.seeds": [0]})))
    assert (
        "student-0 is trained again (training.steps changed); student-1 is deleted (the "
        "parameters do not name it)" in caplog.text
    )


def test_keep_refuses_and_names_a_new_directory(
    trained_students: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(students(trained_students))
    params = changed(trained_students, STEPS)
    path = str(write_params(params, tmp_path / "params.yaml"))
    assert main(["distill", "--keep", "--params", path]) == 2
    said = capsys.readouterr().err
    assert "student-1 is trained again (training.steps changed)" in said
    name = re.search(r"--set (paths\.students=\S+-[0-9a-f]{8})$", said.strip())
    assert name
    with pytest.raises(UserError, match=r"deleted .* Name a new directory"):
        api_distill(parse_params(changed(trained_students, {"distillation.seeds": [0]})), keep=True)
    assert main(["distill", "--keep", "--params", path, "--set", name[1]]) == 0
    assert main(["distill", "--keep", "--params", path, "--set", name[1]]) == 0
    assert tree(students(trained_students)) == before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("synthesize", {"synthesis.iterations": 5}),
        ("distill", STEPS),
        ("dream", STEPS),
        ("dream", {"synthesis.iterations": 5}),
    ],
)
def test_the_flows_keep_too(
    trained_students: Params,
    tmp_path: Path,
    name: str,
    change: dict[str, int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flows.command_line._is_pending", lambda *given: False)  # no server
    before = tree(tmp_path / "dataset"), tree(students(trained_students))
    path = str(write_params(changed(trained_students, change), tmp_path / "params.yaml"))
    assert flow([name, "--keep", "--params", path]) == 2
    assert "which --keep protects" in capsys.readouterr().err
    assert (tree(tmp_path / "dataset"), tree(students(trained_students))) == before


def test_a_damaged_student_is_not_called_stale(
    trained_students: Params,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_blobs(tmp_path / "real.tar", 6)
    params = changed(trained_students, {"evaluation.data": str(tmp_path / "real.tar")})
    path = students(params) / "student-0.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["evaluate", "--params", str(write_params(params, tmp_path / "p.yaml"))]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert "stale" not in caplog.text
