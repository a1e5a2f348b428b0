"""Each tool reads every image once, and a tool that is missing is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.consumers.images import CalibrationImages
from pipeline.consumers.nncf import nncf_dataset
from pipeline.consumers.onnxruntime import data_reader
from pipeline.consumers.torchao import calibrate
from pipeline.errors import UserError
from pipeline.teachers.preprocessing import Preprocessing


@pytest.fixture
def images() -> CalibrationImages:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8)
    ones = torch.ones(1, 1, 1, 1)
    return CalibrationImages(pixels, Preprocessing(0.5 * ones, 0.25 * ones), batch=2)


def test_onnx_runtime_reads_again_after_rewind(images: CalibrationImages) -> None:
    from onnxruntime.quantization import CalibrationDataReader

    reader = data_reader(images, "x")
    assert isinstance(reader, CalibrationDataReader)
    for _ in range(2):
        feeds = list(iter(reader.get_next, None))
        assert all(list(feed) == ["x"] for feed in feeds)
        np.testing.assert_array_equal(
            np.concatenate([feed["x"] for feed in feeds]), np.concatenate(list(images))
        )
        assert reader.get_next() is None
        reader.rewind()
    assert len(reader) == 3


def test_nncf_reads_the_transformed_batches(images: CalibrationImages) -> None:
    read = list(nncf_dataset(images, torch.from_numpy).get_inference_data())
    assert all(isinstance(batch, torch.Tensor) for batch in read)
    np.testing.assert_array_equal(torch.cat(read).numpy(), np.concatenate(list(images)))


def test_a_prepared_network_sees_every_batch(images: CalibrationImages) -> None:
    seen: list[torch.Tensor] = []
    calibrate(seen.append, images)
    np.testing.assert_array_equal(torch.cat(seen).numpy(), np.concatenate(list(images)))


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("onnxruntime", lambda images: data_reader(images, "x")),
        ("nncf", lambda images: nncf_dataset(images)),
    ],
)
def test_a_missing_package_is_named(
    images: CalibrationImages,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    use: Callable[[CalibrationImages], Any],
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install .*calibrate"):
        use(images)
