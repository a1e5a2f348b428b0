"""Rows are read as columns, and the images to distrust come first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.dataset import Dataset
from pipeline.errors import BadShardError
from pipeline.params import parse_params
from pipeline.reports.page.checks import checks
from pipeline.reports.page.classes import class_facts
from pipeline.reports.page.comparison import render_comparison
from pipeline.reports.page.page import render_run
from pipeline.reports.page.rows import NOBODY, Rows, read_columns, read_rows_at
from pipeline.reports.page.run import Run
from pipeline.reports.page.thumbnails import thumbnails
from tests.conftest import Params, dataset


def rows_of(confidence: list[float], predicted: list[int], flawed: list[bool]) -> Rows:
    count = len(confidence)
    whole = np.arange(count)
    return Rows(
        shard=np.zeros(count, int), index=whole, label=np.zeros(count, int),
        round=np.zeros(count, int), predicted=np.array(predicted),
        confidence=np.array(confidence), flawed=np.array(flawed),
        replaced=np.zeros(count, bool), student=np.full(count, NOBODY),
        divergence=np.full(count, np.nan), shards=1, missing=0, total=1,
    )  # fmt: skip


def test_flawed_images_come_first_then_unconfirmed_then_unsure_ones() -> None:
    rows = rows_of([0.9, 0.2, 0.6, 0.99], [0, 0, 1, 0], [False, False, False, True])
    assert rows.distrusted(9).tolist() == [3, 2, 1, 0]
    assert rows.distrusted(2).tolist() == [3, 2]


def test_images_of_a_class_are_evenly_spaced() -> None:
    rows = rows_of([1.0] * 9, [0] * 9, [False] * 9)
    assert rows.of_class(0, 0, 3).tolist() == [0, 4, 8]
    assert rows.of_class(0, 0, 20).tolist() == list(range(9))
    assert rows.of_class(1, 0, 3).tolist() == []


def test_columns_are_those_of_the_parquet_files(bare: Run) -> None:
    assert bare.dataset is not None and bare.rows is not None
    rows, labels = bare.rows, bare.dataset.plan.labels
    assert rows.label.tolist() == labels.tolist()
    assert (rows.shards, rows.missing, rows.total) == (2, 0, 2)
    assert ((rows.confidence > 0) & (rows.confidence <= 1)).all()
    assert (rows.student == NOBODY).all() and np.isnan(rows.divergence).all()
    found = read_rows_at(bare.dataset, rows, [0, 13])
    assert found[13]["cls"] == labels[13] and found[13]["index"] == 1
    assert found[0]["teacher_prob"] == pytest.approx(rows.confidence[0])


def test_a_shard_without_rows_is_counted(made: Params) -> None:
    (dataset(made) / "metadata/000001.parquet").unlink()
    rows = read_columns(Dataset.planned(parse_params(made)))
    assert (rows.shards, rows.missing, len(rows)) == (1, 1, 12)


def test_the_page_says_that_it_read_some_shards_only(
    full: Run, made: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert full.rows is not None and full.rows.read_from == ""
    assert "Read from the rows" not in render_run(full).decode()
    monkeypatch.setattr("pipeline.reports.page.rows.MOST_SHARDS", 1)
    rows = read_columns(Dataset.planned(parse_params(made)))
    said = "Read from the rows of 1 of 2 shards."
    assert rows.read_from == said and (rows.shards, rows.missing) == (1, 0)
    part = replace(full, rows=rows)
    page = render_run(part).decode()
    for place in ("images", "doubt", "classes"):  # also below the bars of the confidence
        section = page.partition(f'<section id="{place}">')[2].partition("</section>")[0]
        assert said in section, place
    assert "The columns to its right are estimates." in page
    assert (
        f"B</span> The confidence is an estimate. {said}" in render_comparison(full, part).decode()
    )
    without = replace(part, saved=replace(part.saved, confusion={}))
    assert any(said in check.answer for check in checks(without, class_facts(without)))


def test_damaged_rows_are_named(made: Params) -> None:
    (dataset(made) / "metadata/000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadShardError, match=r"shard 000000 cannot be read.*run verify --repair"):
        read_columns(Dataset.planned(parse_params(made)))


def test_an_image_that_was_changed_is_not_shown(bare: Run, made: Params) -> None:
    assert bare.dataset is not None and bare.rows is not None
    found = read_rows_at(bare.dataset, bare.rows, [0])
    tar = Path(dataset(made) / "train/000000.tar")
    data = bytearray(tar.read_bytes())
    data[found[0]["offset"] + 60] ^= 1
    tar.write_bytes(data)
    with pytest.raises(BadShardError, match="was changed since it was made"):
        thumbnails(bare.dataset, found)


@pytest.mark.parametrize("most", [10_000, 40_000, 4_000_000])
def test_large_images_shrink_until_they_fit(
    bare: Run, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Noise is the worst case of every format."""
    assert bare.dataset is not None and bare.rows is not None
    found = read_rows_at(bare.dataset, bare.rows, [0, 1])
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    monkeypatch.setattr("pipeline.reports.page.thumbnails._read", lambda *_: Image.fromarray(noise))
    shown = thumbnails(bare.dataset, found, most)
    assert sum(len(each.uri) for each in shown.values()) < 1.4 * most
    assert not any(each.pixelated for each in shown.values())
