"""Calibration images for ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.consumers.images import CalibrationImages
from pipeline.consumers.packages import import_tool


def data_reader(images: CalibrationImages, input_name: str) -> Any:
    """The images as a ``CalibrationDataReader``, for ``quantize_static``.

    Args:
        images: the images.
        input_name: the name of the model's input.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    base = import_tool("onnxruntime.quantization").CalibrationDataReader

    class Reader(base):  # type: ignore[misc, valid-type]
        """Reads the batches one after the other; ``rewind`` starts again."""

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
