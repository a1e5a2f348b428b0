"""A run says what it replaces and why, and --keep refuses."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from pipeline import synthesize as api_synthesize
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.params import parse_params
from tests.conftest import Params, changed, dataset, make, tree, write_params


def test_a_replacement_is_announced_with_its_reason(
    made: Params, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        make(changed(made, {"synthesis.iterations": 5, "synthesis.objective.tv": 0.5}))
    assert (
        "2 of 2 shards are made again (synthesis.iterations changed from 4 to 5, "
        "synthesis.objective.tv changed from 0.004 to 0.5)"
    ) in caplog.text


def test_nothing_is_announced_where_nothing_is_lost(
    made: Params, caplog: pytest.LogCaptureFixture
) -> None:
    (dataset(made) / "train" / "000001.tar").unlink()
    with caplog.at_level(logging.WARNING):
        assert make(made) == [1]
    assert "other parameters" not in caplog.text


@pytest.mark.parametrize("change", [{"synthesis.iterations": 5}, {"synthesis.images": 12}])
def test_keep_refuses_and_names_a_new_directory(
    made: Params,
    change: dict[str, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = tree(dataset(made))
    params = changed(made, change)
    path = str(write_params(params, tmp_path / "params.yaml"))
    assert main(["synthesize", "--keep", "--params", path]) == 2
    said = capsys.readouterr().err
    name = re.search(r"--set (paths\.dataset=\S+-[0-9a-f]{8})$", said.strip())
    assert name and tree(dataset(made)) == before
    with pytest.raises(UserError, match="which --keep protects"):
        api_synthesize(parse_params(params), keep=True)
    assert main(["synthesize", "--keep", "--params", path, "--set", name[1]]) == 0
    assert main(["synthesize", "--keep", "--params", path, "--set", name[1]]) == 0
    assert tree(dataset(made)) == before


@pytest.mark.parametrize(
    "name", ["metadata/000000.json", "train/000000.tar", "students/000001.safetensors"]
)
def test_nothing_is_announced_where_the_same_student_is_trained_again(
    tiny: Params, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    params = changed(tiny, {"adaptive.rounds": 1})
    make(params)
    before = tree(dataset(params))
    (dataset(params) / name).unlink()
    with caplog.at_level(logging.WARNING):
        api_synthesize(parse_params(params), keep=True)
    assert "other parameters" not in caplog.text
    assert tree(dataset(params)) == before
    with pytest.raises(UserError, match="the student of round 1 changed"):
        api_synthesize(parse_params(changed(params, {"adaptive.training.steps": 5})), keep=True)


def test_the_student_of_an_earlier_round_is_missing(
    tiny: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = changed(tiny, {"adaptive.rounds": 2})
    make(params)
    before = tree(dataset(params))
    (dataset(params) / "students/000001.safetensors").unlink()
    path = str(write_params(params, tmp_path / "params.yaml"))
    assert main(["status", "--params", path]) == 0
    assert main(["verify", "--params", path, "--agreement", "0"]) == 1
    assert "students/000001.safetensors is missing" in capsys.readouterr().out
    assert main(["synthesize", "--params", path]) == 0
    assert tree(dataset(params)) == before
