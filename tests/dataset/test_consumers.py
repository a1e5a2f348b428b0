"""The contract: four consumers load a dataset unmodified and see the same images and labels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import timm.data
import webdataset as wds
import wids
from PIL import Image

from pipeline.execution.runner import open_runner
from pipeline.params import parse_params
from pipeline.stages.synthesize import synthesize
from pipeline.synthesis.check import load_checked_teacher

Loaded = list[tuple[np.ndarray, int]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of RGB images from an untrained torchvision teacher, soft labels included."""
    path = tmp_path_factory.mktemp("consumers")
    config = parse_params(
        {
            "teacher": {
                "source": "torchvision:resnet18",
                "arguments": {"num_classes": 4},
                "weights": None,
                "classes": 4,
                "input": {
                    "channels": 3,
                    "height": 16,
                    "width": 16,
                    "mean": [0.5] * 3,
                    "std": [0.25] * 3,
                },
            },
            "student": {"source": "torchvision:resnet18"},
            "synthesis": {
                "images": 20,
                "shard_size": 8,
                "batch_size": 8,
                "iterations": 1,
                "precision": "float32",
                "compile": False,
                "soft_labels": True,
            },
            "execution": {"device": "cpu", "workers": 1},
            "paths": {"dataset": str(path / "synthetic")},
        }
    )
    with open_runner(config) as run:
        synthesize(config, load_checked_teacher(config), run)
    return path / "synthetic"


@pytest.fixture(scope="module")
def published(root: Path) -> Loaded:
    """What the tars hold, by the plainest means: the provenance's byte ranges."""
    found: Loaded = []
    for table in sorted((root / "metadata").glob("*.parquet")):
        for row in pq.read_table(table).to_pylist():
            tar = (root / "train" / row["shard"]).read_bytes()
            png = tar[row["offset"] : row["offset"] + row["size"]]
            found.append((np.asarray(Image.open(io.BytesIO(png))), row["cls"]))
    assert len(found) == 20
    return found


def assert_same(loaded: Loaded, published: Loaded) -> None:
    assert len(loaded) == len(published)
    for (image, label), (expected, expected_label) in zip(loaded, published, strict=True):
        np.testing.assert_array_equal(image, expected)
        assert label == expected_label


def test_webdataset(root: Path, published: Loaded) -> None:
    urls = str(root / "train" / "{000000..000002}.tar")
    stream = wds.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("png", "cls")
    assert_same([(image, label) for image, label in stream], published)


def test_webdataset_soft_labels(root: Path) -> None:
    urls = str(root / "train" / "{000000..000002}.tar")
    for sample in wds.WebDataset(urls, shardshuffle=False).decode():
        assert sample["logits.npy"].shape == (4,)
        assert sample["json"]["teacher_pred"] == int(sample["logits.npy"].argmax())


def test_wids(root: Path, published: Loaded) -> None:
    index = wids.ShardListDataset(str(root / "index.json"), base=str(root), keep=True)
    loaded = [(np.asarray(index[i][".png"]), index[i][".cls"]) for i in range(len(index))]
    assert_same(loaded, published)


def test_timm(root: Path, published: Loaded) -> None:
    loaded_by_timm = timm.data.create_dataset("wds/dreamshard", root=str(root), split="train")
    assert_same([(np.asarray(image), label) for image, label in loaded_by_timm], published)


@pytest.mark.parametrize("how", ["folder", "webdataset"])
def test_hugging_face(
    root: Path, published: Loaded, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    arguments: dict[str, Any] = {"split": "train", "cache_dir": str(tmp_path)}
    if how == "folder":
        table = datasets.load_dataset(str(root), **arguments)
    else:
        files = str(root / "train" / "*.tar")
        table = datasets.load_dataset("webdataset", data_files=files, **arguments)
    assert_same([(np.asarray(row["png"]), row["cls"]) for row in table], published)


def test_one_shard_loads_too(root: Path, tmp_path: Path) -> None:
    """With a single tar beside ``sizes.json`` the card's `configs:` must decide, not the count."""
    import shutil

    copy = tmp_path / "one"
    shutil.copytree(root, copy)
    for number in (1, 2):
        (copy / "train" / f"{number:06d}.tar").unlink()
    table = datasets.load_dataset(str(copy), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.num_rows == 8
