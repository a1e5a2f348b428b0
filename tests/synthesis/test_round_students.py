from __future__ import annotations

import json
import math
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.dataset.records import NULLABLE
from pipeline.errors import UserError
from pipeline.params import parse_params
from pipeline.stages.finalize import finalize
from pipeline.synthesis.job import Competitor
from pipeline.synthesis.make_shard import make_shard
from pipeline.synthesis.shard_states import missing_jobs
from pipeline.synthesis.spec import round_objective
from tests.conftest import Params, changed, dataset, load, make, tree
from tests.synthesis.shards import WHOLE, files, rows, shard_files, states, times, verified


def test_a_round_competes_with_a_student_of_its_own(competing: Params) -> None:
    assert make(competing) == [0, 1, 2]
    root = dataset(competing)
    students = [f"students/000001.{kind}" for kind in ("csv", "json", "safetensors")]
    assert files(root) == sorted([*WHOLE, *shard_files(0, 1, 2), *students])
    for number in (0, 1):
        for row in rows(root, number):
            assert row["round"] == 0
            assert all(row[name] is None for name in NULLABLE)
    competed = rows(root, 2)
    assert len(competed) == 6
    for row in competed:
        assert row["round"] == 1
        assert 0 <= row["js_divergence"] <= math.log(2) + 1e-6
        assert row["loss_compete"] == pytest.approx(1 - row["js_divergence"], abs=1e-6)
        assert row["student_pred"] in (0, 1, 2) and 0 <= row["student_prob"] <= 1
    with tarfile.open(root / "train" / "000002.tar") as tar:
        content = tar.extractfile(f"{competed[0]['key']}.json")
        assert content is not None and json.loads(content.read())["round"] == 1


def test_a_second_run_of_rounds_makes_nothing(competing: Params) -> None:
    make(competing)
    before, written = tree(dataset(competing)), times(dataset(competing))
    assert make(competing) == []
    assert tree(dataset(competing)) == before
    assert times(dataset(competing)) == written


@pytest.mark.parametrize(
    ("lost", "made"),
    [
        (["train/000002.tar"], [2]),
        (["train/000000.tar"], [0]),
        (["students/000001.safetensors"], []),
        (["students/000001.csv"], []),
        (["students/000001.json", "metadata/000002.json"], [2]),
        (["train/000001.tar", "students/000001.safetensors", "train/000002.tar"], [1, 2]),
    ],
)
def test_what_is_lost_of_a_round_comes_back_the_same(
    competing: Params, lost: list[str], made: list[int]
) -> None:
    make(competing)
    before = tree(dataset(competing))
    for name in lost:
        (dataset(competing) / name).unlink()
    assert make(competing) == made
    assert tree(dataset(competing)) == before


def test_a_round_is_added_to_what_is_there_and_taken_away(tiny: Params) -> None:
    make(tiny)
    plain = tree(dataset(tiny))
    one, two = (changed(tiny, {"adaptive.rounds": rounds}) for rounds in (1, 2))
    assert make(one) == [2]
    after_one = tree(dataset(tiny))
    assert make(two) == [3]
    second = json.loads((dataset(tiny) / "students" / "000002.json").read_bytes())
    assert second["spec"]["start"] == after_one["students/000001.safetensors"]
    assert make(one) == []
    assert tree(dataset(tiny)) == after_one
    assert make(tiny) == []
    assert tree(dataset(tiny)) == plain


def test_another_student_makes_only_its_round_stale(competing: Params) -> None:
    make(competing)
    assert make(changed(competing, {"student.arguments": {"width": 5}})) == [2]
    assert make(changed(competing, {"adaptive.compete": 3.0})) == [2]
    assert make(changed(competing, {"adaptive.training.steps": 5})) == [2]


def test_a_student_that_would_be_another_today_makes_its_round_stale(competing: Params) -> None:
    """Commands that only read must see it too, before the student is trained again."""
    make(competing)
    for change in ({"adaptive.training.steps": 5}, {"student.arguments": {"width": 5}}):
        other = changed(competing, change)
        assert states(other) == {0: "complete", 1: "complete", 2: "stale"}
        with pytest.raises(
            UserError, match=r"1 of 3 .* 000002 \(stale: the student of round 1 changed\)"
        ):
            finalize(*load(other))
        assert any("shard 000002" in text for text in verified(other))
    assert verified(competing) == []


def test_a_student_that_another_run_trained_anew_is_not_competed_with(competing: Params) -> None:
    make(competing)
    config, teacher = load(competing)
    weights = dataset(competing) / "students/000001.safetensors"
    competitor = Competitor(weights, "0" * 64)
    (job,) = missing_jobs(config, teacher.digest, 1, competitor, [2])
    with pytest.raises(UserError, match="changed since the round began"):
        make_shard(job, "cpu", lambda images: None)


def test_a_checkpoint_of_a_stopped_round_to_other_parameters_is_swept_up(
    competing: Params,
) -> None:
    make(competing)
    before = tree(dataset(competing))
    saved = {"spec_sha256": "", "precision": "", "training": {}, "progress": {}}
    torch.save(saved, dataset(competing) / "students/000001.checkpoint")
    assert make(competing) == []
    assert tree(dataset(competing)) == before


def test_rounds_in_shard_ranges(competing: Params, tmp_path: Path) -> None:
    make(competing)
    parts = changed(competing, {"paths.dataset": str(tmp_path / "parts")})
    with pytest.raises(UserError, match="make those first"):
        make(parts, range(1, 3))
    assert make(parts, range(0, 2)) == [0]
    assert files(tmp_path / "parts") == sorted(["dreamshard.json", *shard_files(0, 1)])
    assert make(parts, range(2, 3)) == [2]
    finalize(*load(parts))
    assert tree(tmp_path / "parts") == tree(dataset(competing))


@pytest.mark.parametrize(
    "changes",
    [
        {"student.source": "torch.nn:Nothing"},
        {"student.arguments": {"classes": 4}},
    ],
)
def test_what_a_round_cannot_do_is_said_before_any_work(
    competing: Params, changes: dict[str, Any]
) -> None:
    with pytest.raises(UserError):
        make(changed(competing, changes))
    assert not dataset(competing).exists() or files(dataset(competing)) == []


@pytest.mark.parametrize(
    ("key", "value", "without"),
    [("masked", True, False), ("temperature", 3.0, 1.0), ("confident", 0.5, 0.0)],
)
def test_the_competition_of_the_parameters_reaches_the_rounds_alone(
    tiny: Params, key: str, value: float, without: float
) -> None:
    config = parse_params(changed(tiny, {"adaptive.rounds": 1, f"adaptive.{key}": value}))
    assert [getattr(round_objective(config, round_), key) for round_ in (0, 1)] == [without, value]


@pytest.mark.parametrize(
    ("preset", "given", "expected"),
    [("normalised", None, 0.5), ("adaptive-cifar10", None, 1.0), ("normalised", 0.2, 0.2)],
)
def test_the_share_of_competing_iterations_is_the_given_one_or_the_presets(
    tiny: Params, preset: str, given: float | None, expected: float
) -> None:
    parts = {
        "adaptive.rounds": 1,
        "adaptive.until": given,
        "synthesis.objective": {"preset": preset},
    }
    assert round_objective(parse_params(changed(tiny, parts)), 1).compete_until == expected
