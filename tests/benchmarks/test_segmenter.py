"""The benchmark of a segmenter: its pictures, its measure, and its unlabelled images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.segmenter import study
from benchmarks.segmenter.network import mean_iou, normalise, train
from benchmarks.segmenter.shapes import CLASSES, SIDE, draw


def test_pictures_hold_every_class_and_follow_from_their_seed() -> None:
    pixels, classes = draw(20, seed=0)
    assert (pixels.shape, pixels.dtype) == ((20, 3, SIDE, SIDE), np.uint8)
    assert set(np.unique(classes)) == set(range(len(CLASSES)))
    assert np.array_equal(pixels, draw(20, seed=0)[0])
    assert not np.array_equal(pixels, draw(20, seed=1)[0])


def test_the_intersection_over_union() -> None:
    classes = torch.tensor([[[0, 0, 1, 1], [2, 2, 3, 3]]])
    assert mean_iou(classes, classes) == 1
    wrong = torch.tensor([[[0, 1, 1, 1], [2, 2, 3, 3]]])
    assert mean_iou(wrong, classes) == pytest.approx((1 / 2 + 2 / 3 + 1 + 1) / 4)


def test_the_images_of_the_segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "SEEDS", 2)
    monkeypatch.setattr(study, "IMAGES", 2)
    network = train(steps=2)
    assert 90_000 < sum(weight.numel() for weight in network.parameters()) < 110_000
    save_file(network.state_dict(), tmp_path / "segmenter.safetensors")
    made = study.make_images(tmp_path, iterations=1)
    assert tuple(made.shape) == (4, 3, SIDE, SIDE)
    sets = study.calibration_sets(made, seed=1)
    assert np.array_equal(sets["dreamshard"], normalise(made[2:]).numpy())
    assert {images.shape for images in sets.values()} == {(2, 3, SIDE, SIDE)}
