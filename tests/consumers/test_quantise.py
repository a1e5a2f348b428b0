"""ONNX Runtime quantises a network for any number of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config.calibration import CalibrationConfig
from pipeline.consumers.images import CalibrationImages
from pipeline.consumers.quantise import export_onnx, logits, quantise
from pipeline.teachers.preprocessing import Preprocessing


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_the_last_batch_may_be_smaller(method: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8)
    ones = torch.ones(1, 1, 1, 1)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    export_onnx(network, (1, 8, 8), tmp_path / "network.onnx")
    found = []
    for batch in (2, 5, 1):
        images = CalibrationImages(pixels, Preprocessing(0.5 * ones, 0.25 * ones), batch)
        how = CalibrationConfig.model_validate({"method": method})
        quantise(tmp_path / "network.onnx", tmp_path / "int8.onnx", images, how)
        found.append(logits(tmp_path / "int8.onnx", images))
    np.testing.assert_allclose(found[0], logits(tmp_path / "network.onnx", images), atol=0.05)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found[0], found[1], atol=0.01)
