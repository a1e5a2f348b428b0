"""Calibration images as a dataset of OpenVINO's NNCF."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.consumers.images import Batch, CalibrationImages
from pipeline.consumers.packages import import_tool


def nncf_dataset(images: CalibrationImages, transform: Callable[[Batch], Any] | None = None) -> Any:
    """The images as ``nncf.Dataset``, for ``nncf.quantize``.

    NNCF counts batches: its ``subset_size`` of 300 means 300 batches. Its ranges are means over
    batches, so that a batch of one image is the usual choice.

    Args:
        images: the images.
        transform: turns a batch into the input of the model: ``torch.from_numpy`` for a model of
            PyTorch. None gives NumPy arrays, which models of OpenVINO take.

    Raises:
        UserError: NNCF is not installed.
    """
    return import_tool("nncf").Dataset(images, transform)
