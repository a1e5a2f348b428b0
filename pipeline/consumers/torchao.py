"""Calibration of a network that torchao's PT2E has prepared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.consumers.images import CalibrationImages


def calibrate(prepared: Callable[[Tensor], Any], images: CalibrationImages) -> None:
    """Run the result of ``prepare_pt2e`` on every batch, so that its observers see the images.

    Args:
        prepared: the network with observers. Its input has the batch of ``images``, or a dynamic
            one.
        images: the images.
    """
    with torch.no_grad():
        for batch in images:
            prepared(torch.from_numpy(batch))
