"""A deployment restricts overrides, and no override can lift the restriction."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.overrides import ALLOWED
from pipeline.errors import UserError
from pipeline.params import load_params, parse_params
from tests.conftest import Params, changed, write_params


@pytest.mark.parametrize(
    ("allowed", "overrides", "refused"),
    [
        ("synthesis", {"synthesis.images": 5}, None),
        ("synthesis", {"synthesis.objective.tv": 0.1}, None),
        ("synthesis, distillation.steps", {"distillation.steps": 5}, None),
        ("synthesis", {"teacher.source": "subprocess:getoutput"}, "teacher.source"),
        ("synthesis", {"teacher": {"source": "a:b"}}, "teacher"),
        ("synthesis", {"student.arguments.width": 3}, "student.arguments.width"),
        ("synthesis", {"evaluation.verifier": {"source": "a:b"}}, "evaluation.verifier"),
        ("synthesis", {"execution.dask_address": "tcp://h:1"}, "execution.dask_address"),
        ("synthesis", {"synthesise.x": 1}, "synthesise.x"),
        ("synthesis.images", {"synthesis": {"images": 4}}, "synthesis"),
        ("distillation.step", {"distillation.steps": 5}, "distillation.steps"),
        ("", {"synthesis.images": 5}, "synthesis.images"),
        ("synthesis", {"": 5}, ""),
        ("synthesis", {ALLOWED: "teacher", "teacher.source": "a:b"}, ALLOWED),
        ("synthesis", {"execution.allow_overrides": ["teacher"]}, "execution.allow_overrides"),
    ],
)
def test_only_listed_keys_may_be_replaced(
    tiny: Params,
    monkeypatch: pytest.MonkeyPatch,
    allowed: str,
    overrides: dict[str, Any],
    refused: str | None,
) -> None:
    monkeypatch.setenv(ALLOWED, allowed)
    if refused is None:
        parse_params(tiny, overrides=overrides)
        return
    with pytest.raises(UserError, match=f"--set {refused}: this deployment forbids it"):
        parse_params(tiny, overrides=overrides)
    assert os.environ[ALLOWED] == allowed


def test_another_file_is_refused_where_overrides_are_restricted(
    tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    write_params(tiny, work / "params.yaml")
    outside = write_params(changed(tiny, {"teacher.source": "a:b"}), tmp_path / "evil.yaml")
    (work / "link.yaml").symlink_to(outside)
    monkeypatch.chdir(work)
    load_params(outside)  # nothing restricts it
    monkeypatch.setenv(ALLOWED, "synthesis")
    assert load_params("params.yaml", {"synthesis.images": 7}).synthesis.images == 7
    for path in (outside, "../evil.yaml", "link.yaml"):
        with pytest.raises(UserError, match="lies outside the working directory"):
            load_params(path)


def test_a_deployed_flow_obeys_the_restriction(
    tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.synthesize import synthesize

    marker = tmp_path / "ran"
    write_params(tiny, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ALLOWED, "synthesis")
    evil = {
        "teacher.source": "subprocess:getoutput",
        "teacher.arguments": {"cmd": f"touch {marker}"},
    }
    with pytest.raises(UserError, match="this deployment forbids it"):
        synthesize.fn("params.yaml", overrides=evil)
    assert not marker.exists()
