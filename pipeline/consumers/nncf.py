"""Calibration images as a dataset of OpenVINO's NNCF."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.consumers.images import Batch, CalibrationImages
from pipeline.consumers.packages import import_tool


def nncf_dataset(images: CalibrationImages, transform: Callable[[Batch], Any] | None = None) -> Any:
    """Give the images as an ``nncf.Dataset``, for ``nncf.quantize``.

    NNCF counts batches: its ``subset_size`` of 300 means 300 batches. NNCF also takes the mean of
    the ranges of all batches. So batches of one image are the usual choice.

    Args:
        images: the images. Each batch is float32 ``[B, C, H, W]``.
        transform: turns a batch into the input of the model: ``torch.from_numpy`` for a model of
            PyTorch. None gives NumPy arrays, which models of OpenVINO take.

    Returns:
        The ``nncf.Dataset``.

    Raises:
        UserError: NNCF is not installed.

    Example:
        >>> images = calibration_images(Dataset("data/synthetic"), 256)
        >>> quantised = nncf.quantize(model, nncf_dataset(images), subset_size=256)
    """
    return import_tool("nncf").Dataset(images, transform)
