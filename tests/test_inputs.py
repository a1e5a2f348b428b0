"""Inputs and classes unlike a photograph's: many channels, sides that differ, many classes."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds

from pipeline.cli import main
from pipeline.dataset.plan import plan_of
from pipeline.dataset.tar import decode_image, encode_image, image_kind
from pipeline.params import parse_params
from pipeline.reports.pictures import draw_grids
from tests.conftest import Params, changed, dataset, make, write_params

FACTORY = """
from torch import nn


def strided(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, 2, 1),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
    )
"""


def unlike(tiny: Params, root: Path, channels: int, classes: int, **changes: Any) -> Params:
    """``tiny`` with a teacher and a student of another input and number of classes."""
    (root / "strided.py").write_text(FACTORY)
    part = {
        "source": f"{root / 'strided.py'}:strided",
        "arguments": {"channels": channels, "classes": classes},
    }
    shape = {"channels": channels, "height": 6, "width": 10}
    shape |= {"mean": [0.4] * channels, "std": [0.3] * channels}
    teacher = {**part, "weights": None, "classes": classes, "input": shape}
    return changed({**tiny, "teacher": teacher, "student": part}, changes)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_images_come_back_whatever_their_channels(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), np.uint8)
    data = encode_image(pixels)
    assert np.array_equal(decode_image(data), pixels)
    assert data.startswith(b"\x89PNG" if image_kind(channels) == "png" else b"\x93NUMPY")
    assert image_kind(channels) == ("png" if channels in (1, 3, 4) else "npy")


def test_an_array_that_is_no_image_is_refused() -> None:
    import io

    for array in (np.zeros((3, 4), np.uint8), np.zeros((1, 3, 4), np.float32)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        with pytest.raises(ValueError, match="an image is"):
            decode_image(buffer.getvalue())


@pytest.mark.parametrize("channels", [2, 13])
def test_a_run_with_channels_that_png_cannot_hold(
    tiny: Params, tmp_path: Path, channels: int
) -> None:
    params = unlike(tiny, tmp_path, channels, 3, **{"synthesis.soft_labels": True})
    make(params)
    with tarfile.open(dataset(params) / "train" / "000000.tar") as tar:
        names = tar.getnames()[:4]
    assert sorted(name.partition(".")[2] for name in names) == ["cls", "json", "logits.npy", "npy"]
    path = str(write_params(params, tmp_path / "params.yaml"))
    assert main(["verify", "--params", path, "--agreement", "0"]) == 0
    assert main(["distill", "--params", path]) == 0
    assert "`<key>.npy`" in (dataset(params) / "README.md").read_text()
    assert draw_grids(parse_params(params), tmp_path / "reports")[0].is_file()
    shards = str(dataset(params) / "train" / "000000.tar")
    sample = next(iter(wds.WebDataset(shards, shardshuffle=False).decode()))
    assert sample["npy"].shape == (channels, 6, 10)
    tar_path = dataset(params) / "train" / "000000.tar"
    data = tar_path.read_bytes().replace(b"\x93NUMPY", b"\x93NUMPX", 1)
    tar_path.write_bytes(data)
    assert main(["verify", "--params", path, "--agreement", "0"]) == 1


@pytest.mark.parametrize("classes", [2, 10_000])
def test_from_two_classes_to_ten_thousand(tiny: Params, tmp_path: Path, classes: int) -> None:
    changes: dict[str, Any] = {"synthesis.iterations": 1, "synthesis.images": 8}
    changes["teacher.class_names"] = [f"class {label}" for label in range(classes)]
    params = unlike(tiny, tmp_path, 3, classes, **changes)
    make(params)
    path = str(write_params(params, tmp_path / "params.yaml"))
    assert main(["verify", "--params", path, "--agreement", "0"]) == 0
    labels = plan_of(parse_params(params)).labels.tolist()
    assert max(Counter(labels).values()) == 8 // min(8, classes)
    statement = json.loads((dataset(params) / "provenance.json").read_bytes())
    teacher = statement["predicate"]["buildDefinition"]["externalParameters"]["teacher"]
    assert teacher["class_names"][-1] == f"class {classes - 1}"


def test_more_classes_than_a_batch_holds_take_turns(tiny: Params, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"synthesis.images": 300, "synthesis.shard_size": 60}
    layout = plan_of(parse_params(unlike(tiny, tmp_path, 3, 100, **changes)))
    for shard in layout:
        start = 0
        for batch in shard.batches:
            labels = shard.labels[start : start + batch.size]
            assert len(set(labels.tolist())) == batch.size
            start += batch.size
    assert set(Counter(layout.labels.tolist()).values()) == {3}


def test_a_subset_of_the_classes_with_counts_of_their_own(tiny: Params, tmp_path: Path) -> None:
    table: dict[str, Any] = {"synthesis.images": None, "synthesis.images_per_class": {7: 5, 93: 2}}
    layout = plan_of(parse_params(unlike(tiny, tmp_path, 3, 100, **table)))
    assert Counter(layout.labels.tolist()) == {7: 5, 93: 2}
