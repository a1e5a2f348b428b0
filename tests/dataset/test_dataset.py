"""A dataset that a user opens from its folder alone."""

from __future__ import annotations

import doctest
import json
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.dataset import dataset as dataset_module
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.layout import CLAIM
from pipeline.dataset.plan import plan_of
from pipeline.dataset.stream import ordered_batches
from pipeline.errors import BadShardError, UserError
from pipeline.params import parse_params
from tests.conftest import Params, changed, dataset, make, tree

Identity = tuple[bytes, int]


def identities(batches: list[tuple[Tensor, Tensor]]) -> list[Identity]:
    return [
        (pixels.numpy().tobytes(), int(label))
        for images, labels in batches
        for pixels, label in zip(images, labels, strict=True)
    ]


@pytest.fixture
def opened(made: Params) -> Dataset:
    return Dataset(dataset(made))


def test_its_plan_is_that_of_the_parameters(made: Params, opened: Dataset) -> None:
    plan = plan_of(parse_params(made))
    assert np.array_equal(opened.plan.labels, plan.labels)
    assert [shard.batches for shard in opened.plan] == [shard.batches for shard in plan]
    assert len(opened) == 20
    assert opened.classes == 3
    assert opened.class_names == ("top", "middle", "bottom")
    assert repr(opened) == f"Dataset('{dataset(made)}': 20 images of 3 classes in 2 shards)"


def test_a_table_of_counts_and_a_round(tiny: Params) -> None:
    changes = {"synthesis.images": None, "synthesis.images_per_class": {0: 5, 2: 9}}
    params = changed(tiny, {**changes, "adaptive.rounds": 1, "teacher.class_names": None})
    make(params)
    opened = Dataset(str(dataset(params)))
    assert np.array_equal(opened.plan.labels, plan_of(parse_params(params)).labels)
    assert Counter(opened.plan.labels[:14].tolist()) == {0: 5, 2: 9}
    assert opened.class_names is None
    assert [shard.round for shard in opened.shards()] == [0, 0, 1]
    assert [shard.number for shard in opened.shards(round=1)] == [2]
    assert opened.shards(round=2) == []


def test_shards_and_records(opened: Dataset) -> None:
    first, second = opened.shards()
    assert (first.name, first.round, first.images) == ("000000", 0, 12)
    assert (second.name, second.images) == ("000001", 8)
    assert second.path == opened.paths.tars[1]
    record = opened.record(1)
    assert (record.shard, record.images, record.first) == ("000001", 8, 12)
    assert [record.shard for record in opened.records()] == ["000000", "000001"]
    for number in (2, -1):
        with pytest.raises(UserError, match=rf"has no shard {number}: its shards are 0 to 1"):
            opened.record(number)


def test_a_record_that_is_damaged_or_gone(opened: Dataset) -> None:
    path = opened.paths.records[1]
    path.write_bytes(path.read_bytes().replace(b'"images": 8', b'"images": 9'))
    for _ in range(2):
        with pytest.raises(UserError, match=r"shard 000001 of .*: run synthesize first"):
            opened.record(1)
        with pytest.raises(UserError, match=r"shard 000001 of .*: run synthesize first"):
            opened.digest([0, 1])
        assert [record.shard for record in opened.records()] == ["000000"]
        path.unlink(missing_ok=True)


def test_a_digest_changes_with_any_tar(made: Params, opened: Dataset) -> None:
    before = opened.digest([0, 1])
    assert before == Dataset.planned(parse_params(made)).digest(range(2))
    assert len({before, opened.digest([0]), opened.digest([1, 0])}) == 3
    make(changed(made, {"synthesis.iterations": 5}))
    assert opened.digest([0, 1]) != before


def test_paths_are_all_files(made: Params, opened: Dataset) -> None:
    paths = opened.paths
    files = [*paths.tars, *paths.rows, *paths.records, *paths.index_files]
    names = {str(path.relative_to(dataset(made))) for path in files}
    assert {*names, CLAIM} == set(tree(dataset(made)))


def test_batches_in_order(opened: Dataset) -> None:
    batches = list(opened.batches(6))
    assert [len(labels) for _, labels in batches] == [6, 6, 6, 2]
    assert batches[0][0].shape == (6, 1, 8, 8) and batches[0][0].dtype == torch.uint8
    labels = torch.cat([labels for _, labels in batches])
    assert labels.dtype == torch.int64 and labels.tolist() == opened.plan.labels.tolist()
    by_webdataset = ordered_batches(opened.paths.tars, 6)
    assert identities(batches) == identities(list(by_webdataset))


def test_a_stream_is_shuffled_and_repeats_with_its_seed(opened: Dataset) -> None:
    def seen(seed: int, epochs: int, **options: int) -> list[Identity]:
        return identities(list(opened.stream(5, seed=seed, epochs=epochs, **options)))

    ordered = identities(list(opened.batches(5)))
    assert seen(0, 1) != ordered and Counter(seen(0, 1)) == Counter(ordered)
    assert seen(0, 1) == seen(0, 1) != seen(1, 1)
    assert seen(0, 2)[:20] == seen(0, 1) != seen(0, 2)[20:]
    assert seen(0, 2, keep=20) == seen(0, 2)
    assert Counter(seen(0, 1, shuffle=0)) == Counter(ordered)
    endless = islice(opened.stream(5, seed=0), 12)
    assert identities(list(endless)) == seen(0, 3)


def test_a_stream_leaves_out_a_last_smaller_batch(opened: Dataset) -> None:
    assert [len(labels) for _, labels in opened.stream(6, epochs=1)] == [6, 6, 6]


@pytest.mark.parametrize("size", [0, 21])
def test_a_batch_that_cannot_be(opened: Dataset, size: int) -> None:
    with pytest.raises(UserError, match=f"batch_size is {size}: name a number from 1 to 20"):
        opened.stream(size)


def test_a_damaged_tar(opened: Dataset) -> None:
    path = opened.paths.tars[1]
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadShardError, match=r"000001\.tar: cut off"):
        list(opened.batches(6))
    with pytest.raises(BadShardError, match=r"000001\.tar: cut off"):
        list(opened.stream(6, epochs=1))


def test_a_folder_that_is_no_finished_dataset(tmp_path: Path, made: Params) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=r"is not a finished dataset.*: check the path, or run"):
            Dataset(path)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(dataset(made), unfinished)
    (unfinished / "provenance.json").unlink()
    with pytest.raises(UserError, match="unfinished is not a finished dataset"):
        Dataset(unfinished)


@pytest.mark.parametrize("damage", ["text", "list", "parameter"])
def test_a_provenance_that_cannot_be_read(made: Params, damage: str) -> None:
    path = dataset(made) / "provenance.json"
    statement = json.loads(path.read_bytes())
    parameters = statement["predicate"]["buildDefinition"]["externalParameters"]
    parameters["synthesis"]["of_another_version"] = 1
    texts = {"text": "no JSON", "list": "[]", "parameter": json.dumps(statement)}
    path.write_text(texts[damage])
    with pytest.raises(UserError, match=r"provenance\.json is damaged, or another version"):
        Dataset(dataset(made))


def test_a_dataset_that_is_only_planned(tiny: Params) -> None:
    planned = Dataset.planned(parse_params(tiny))
    assert (len(planned), planned.classes, len(planned.shards())) == (20, 3, 2)
    assert planned.class_names == ("top", "middle", "bottom")
    assert list(planned.records()) == []


def test_a_dataset_at_a_url(made: Params) -> None:
    opened = Dataset(f"file://{dataset(made)}")
    assert len(list(opened.batches(20))) == 1


def test_the_example_of_its_docstring_runs(
    made: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(dataset(made), tmp_path / "data" / "synthetic")
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(dataset_module)
    assert results.failed == 0 and results.attempted > 3
