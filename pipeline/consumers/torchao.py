"""Calibrate a network that torchao's PT2E has prepared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.consumers.images import CalibrationImages


def calibrate(prepared: Callable[[Tensor], Any], images: CalibrationImages) -> None:
    """Run the result of ``prepare_pt2e`` on every batch, so that its observers see the images.

    Args:
        prepared: the network with observers. It takes batches of any size, or of the size that
            ``images`` has.
        images: the images. Each batch is given as a float32 tensor ``[B, C, H, W]``.

    Example:
        >>> prepared = prepare_pt2e(graph, quantizer)
        >>> calibrate(prepared, calibration_images(Dataset("data/synthetic"), 256, batch=32))
        >>> quantised = convert_pt2e(prepared)
    """
    with torch.no_grad():
        for batch in images:
            prepared(torch.from_numpy(batch))
