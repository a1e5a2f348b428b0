"""The section ``calibration``."""

from __future__ import annotations

from typing import Literal

from pipeline.config.fields import Positive, Section, Seed

Bits = Literal[8, 4]


class CalibrationConfig(Section):
    """How ``calibrate`` quantises the teacher. It never influences an image or a student."""

    images: Positive = 256
    """Synthetic images to calibrate with, the same number of each class, or one more of some. The
    other images of the dataset compare the quantised teacher with the teacher."""

    weight_bits: Bits = 8
    """Bits of a weight, 8 or 4. Each output channel has its range."""

    activation_bits: Bits = 8
    """Bits of an activation, 8 or 4. Each tensor has its range, which the images decide."""

    method: Literal["minmax", "percentile"] = "minmax"
    """How ONNX Runtime chooses the range of an activation: minmax (the extreme values) or
    percentile (the central 99.999 % of the values, better for 4 bits)."""

    seed: Seed = 0
    """Draws the images of the calibration and the noise, 0 to 2**63 - 1."""
