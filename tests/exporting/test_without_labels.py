"""Exports of a dataset without labels load in their programs, and have no label."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import pipeline as ds
from pipeline.dataset.tar import read_tar
from tests.conftest import Params, dataset


@pytest.fixture
def opened(unlabelled_dataset: Params) -> ds.Dataset:
    return ds.Dataset(dataset(unlabelled_dataset))


def test_npz(opened: ds.Dataset, tmp_path: Path) -> None:
    said = opened.export("npz", tmp_path / "out", images=15)
    assert said.endswith(": the first ones, in the order of the keys")
    data = np.load(tmp_path / "out/data.npz")
    assert set(data) == {"images", "keys"}
    pixels, _ = next(opened.batches(15))
    assert torch.equal(torch.from_numpy(data["images"]), pixels)
    card = (tmp_path / "out/README.md").read_text()
    assert "15 of 20 images without labels: the first ones" in card
    for word in ("image-classification", "labels are", '"labels"', "`labels`"):
        assert word not in card


def test_imagefolder_has_no_class_folders(opened: ds.Dataset, tmp_path: Path) -> None:
    opened.export("imagefolder", tmp_path / "out")
    files = sorted((tmp_path / "out/train").iterdir())
    shards = [sample for tar in opened.paths.tars for sample in read_tar(tar)]
    assert [path.name for path in files] == [f"{key}.png" for key, _, _ in shards]
    assert [path.read_bytes() for path in files] == [parts["png"] for _, parts, _ in shards]
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert len(loaded) == 20
    assert loaded.column_names == ["image"]


def test_parquet(opened: ds.Dataset, tmp_path: Path) -> None:
    opened.export("parquet", tmp_path / "out")
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "out/train.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded.column_names == ["image", "key"]
    pixels, _ = next(opened.batches(20))
    for row, expected in zip(loaded, pixels.numpy(), strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]), expected[0])


def test_the_shards_load_by_their_card(opened: ds.Dataset, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(opened.root), split="train", cache_dir=str(tmp_path / "c"))
    assert set(loaded.column_names) == {"json", "png", "__key__", "__url__"}
    first = next(iter(read_tar(opened.paths.tars[0])))[1]["png"]
    expected = np.asarray(Image.open(io.BytesIO(first)))
    np.testing.assert_array_equal(np.asarray(loaded[0]["png"]), expected)
