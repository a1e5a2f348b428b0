"""The stage of DVC and the deployment of Prefect of ``calibrate``, which are off by default."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.cli import main

ROOT = Path(__file__).parents[2]
READ = YAML(typ="safe", pure=True).load


def stages(text: str) -> dict[str, Any]:
    return dict(READ(text)["stages"])


@pytest.mark.parametrize("kind", ["clone", "digits", "own"])
def test_the_stage_is_off_until_its_lines_are_no_comment(kind: str, tmp_path: Path) -> None:
    folder, options = tmp_path / "project", ["--example", "digits"] if kind == "digits" else []
    if kind == "clone":
        folder = ROOT
    else:
        assert main(["init", str(folder), *options]) == 0
    text = (folder / "dvc.yaml").read_text()
    off = stages(text)
    assert "calibrate" not in off
    on = stages(re.sub(r"(?m)^  # (?=calibrate:|  )", "  ", text))
    assert set(on) == {*off, "calibrate"}
    stage = on["calibrate"]
    assert stage["cmd"].split()[-1] == "calibrate"
    assert set(stage["params"]) <= set(READ((folder / "params.yaml").read_text()))
    assert stage["metrics"] == ["${paths.reports}/calibration.json"]


def test_the_deployment_is_scheduled_by_nobody() -> None:
    deployments = READ((ROOT / "prefect.yaml").read_text())["deployments"]
    (found,) = [one for one in deployments if one["entrypoint"].endswith(":calibrate")]
    assert not any(schedule["active"] for schedule in found["schedules"])
    module, _, flow = found["entrypoint"].partition(":")
    parameters = importlib.import_module(module.removesuffix(".py").replace("/", "."))
    assert set(found["parameters"]) == {"params", "overrides"}
    assert getattr(parameters, flow).name == "calibrate"
