"""Calibration images for ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.consumers.images import CalibrationImages
from pipeline.consumers.packages import import_tool


def data_reader(images: CalibrationImages, input_name: str) -> Any:
    """Give the images as a ``CalibrationDataReader``, for ``quantize_static``.

    Args:
        images: the images. Each batch is float32 ``[B, C, H, W]``.
        input_name: the name of the model's input.

    Returns:
        The reader. Its ``rewind`` starts again with the first batch.

    Raises:
        UserError: ONNX Runtime is not installed.

    Example:
        >>> images = calibration_images(Dataset("data/synthetic"), 256)
        >>> quantize_static("teacher.onnx", "int8.onnx", data_reader(images, "images"))
    """
    base = import_tool("onnxruntime.quantization").CalibrationDataReader

    class Reader(base):  # type: ignore[misc, valid-type]
        """Reads the batches one after the other."""

        def __init__(self) -> None:
            self.rewind()

        def __len__(self) -> int:
            return len(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {input_name: batch}

        def rewind(self) -> None:
            self._batches = iter(images)

    return Reader()
