"""Runs that make flawed images again: whole datasets, their rows and their records."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.dataset.plan import plan_of
from pipeline.dataset.stream import ordered_batches
from pipeline.execution.runner import JobsFailed
from pipeline.inversion import selection
from pipeline.inversion.invert import Inverted
from pipeline.params import parse_params
from pipeline.reports.files import report_synthesis
from pipeline.stages.verify import verify
from tests.conftest import Params, changed, dataset, load, make, tree
from tests.inversion.test_fingerprints import cosines

STRICT = {"synthesis.confirmed": True, "synthesis.max_similarity": 0.3, "synthesis.keep": 0.7}


def rows(params: Params) -> list[dict[str, Any]]:
    """The Parquet rows of all shards, in order."""
    found = sorted((dataset(params) / "metadata").glob("*.parquet"))
    return [row for path in found for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def strict(tiny: Params) -> Params:
    """All filters and one adaptive round. Some images are made again, and some stay flawed."""
    return changed(tiny, {**STRICT, "synthesis.iterations": 1, "adaptive.rounds": 1})


def test_filters_leave_the_planned_labels(strict: Params) -> None:
    assert make(strict) == [0, 1, 2]
    config, teacher = load(strict)
    found = rows(strict)
    assert [row["cls"] for row in found] == plan_of(config).labels.tolist()
    assert verify(config, teacher, 0.0, lambda images: None) == []
    assert any(row["replaced"] for row in found) and any(row["flaw"] for row in found)
    for row in found:
        assert row["flaw"] in (None, "unconfirmed", "duplicate")
        assert (row["flaw"] == "unconfirmed") == (row["cls"] != row["teacher_pred"])
        if row["replaced"]:
            assert row["replaced"] in ("unconfirmed", "duplicate") and row["attempt"] > 0


def test_the_records_count_what_the_rows_say(
    strict: Params, caplog: pytest.LogCaptureFixture
) -> None:
    make(strict)
    found = rows(strict)
    for path in (dataset(strict) / "metadata").glob("0*.json"):
        record = json.loads(path.read_bytes())
        mine = [row for row in found if row["shard"] == f"{path.stem}.tar"]
        for field, column in (("replaced", "replaced"), ("flaws", "flaw")):
            assert record[field] == Counter(row[column] for row in mine if row[column])
    with caplog.at_level(logging.WARNING):
        report_synthesis(parse_params(strict), [])
    report = json.loads((Path(strict["paths"]["reports"]) / "synthesis.json").read_bytes())
    flaws = Counter(row["flaw"] for row in found if row["flaw"])
    assert report["flaws"] == flaws
    assert report["replaced"] == Counter(row["replaced"] for row in found if row["replaced"])
    (line,) = [record.getMessage() for record in caplog.records]
    assert all(f"{count} {word}" in line for word, count in flaws.items())
    assert "of 26 images" in line and "after 3 attempts" in line


def test_without_filters_nothing_is_told_or_dropped(
    tiny: Params, caplog: pytest.LogCaptureFixture
) -> None:
    make(tiny)
    with caplog.at_level(logging.WARNING):
        report_synthesis(parse_params(tiny), [])
    assert not caplog.records
    assert {(row["attempt"], row["replaced"], row["flaw"]) for row in rows(tiny)} == {
        (0, None, None)
    }


def test_no_two_images_of_a_shard_are_alike_but_those_told_of(tiny: Params) -> None:
    """A shard has two batches of 6: images of different batches must differ too."""
    params = changed(tiny, {"synthesis.max_similarity": 0.3, "synthesis.images": 12})
    make(params)
    (pixels, _), *_ = ordered_batches([dataset(params) / "train" / "000000.tar"], 12)
    fine = torch.tensor([row["flaw"] is None for row in rows(params)])
    assert 2 < int(fine.sum()) < 12
    assert float(cosines(pixels[fine]).max()) <= 0.3 + 1e-6
    plain = changed(params, {"synthesis.max_similarity": None})
    make(plain)
    (pixels, _), *_ = ordered_batches([dataset(plain) / "train" / "000000.tar"], 12)
    assert float(cosines(pixels).max()) > 0.3


@pytest.mark.parametrize("images", [1, 2, 5])
def test_few_images(tiny: Params, images: int) -> None:
    params = changed(tiny, {**STRICT, "synthesis.images": images, "synthesis.batch_size": 2})
    make(params)
    config, teacher = load(params)
    assert [row["cls"] for row in rows(params)] == plan_of(config).labels.tolist()
    assert verify(config, teacher, 0.0, lambda count: None) == []


@pytest.mark.parametrize("key", sorted(STRICT))
def test_each_filter_makes_every_shard_stale(tiny: Params, key: str) -> None:
    make(tiny)
    assert make(changed(tiny, {key: STRICT[key]})) == [0, 1]


def test_a_filtered_run_killed_anywhere_comes_out_the_same(
    strict: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each n the n-th inversion fails, and a second run completes the dataset."""
    make(strict)
    finished = tree(dataset(strict))
    again = changed(strict, {"paths.dataset": str(tmp_path / "again")})
    real, stops = selection.invert, 0
    while True:
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        calls = 0

        def failing(*arguments: Any) -> Inverted:
            nonlocal calls
            calls += 1
            if calls > stops:  # noqa: B023
                raise RuntimeError("killed")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(selection, "invert", failing)
            try:
                make(again)
            except JobsFailed as error:
                assert "killed" in str(error)
            else:
                break
        make(again)
        assert tree(tmp_path / "again") == finished
        stops += 2
    batches = sum(len(shard.batches) for shard in plan_of(parse_params(strict)))
    assert calls > batches  # some were made again
    assert tree(tmp_path / "again") == finished
    assert make(again) == []


def test_shard_ranges_of_a_filtered_run(strict: Params, tmp_path: Path) -> None:
    make(strict)
    parts = changed(strict, {"paths.dataset": str(tmp_path / "parts")})
    assert make(parts, range(1, 2)) == [1]
    assert make(parts, range(0, 1)) == [0]
    assert make(parts) == [2]
    assert tree(tmp_path / "parts") == tree(dataset(strict))


def test_of_twice_as_many_those_are_kept_that_the_teacher_is_less_sure_of(tiny: Params) -> None:
    whole = changed(tiny, {"synthesis.shard_size": 20, "synthesis.batch_size": 40})
    half = changed(whole, {"synthesis.keep": 0.5, "paths.dataset": str(dataset(tiny)) + "-half"})

    def mean_entropy(params: Params) -> float:
        make(params)
        return math.fsum(row["teacher_entropy"] for row in rows(params)) / 20

    assert mean_entropy(half) > 1.2 * mean_entropy(whole)
