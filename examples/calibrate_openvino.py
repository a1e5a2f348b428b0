"""Quantise the example teacher to 8 bits with OpenVINO's NNCF, calibrated by its synthetic dataset.

    pip install -c constraints.txt -e '.[calibrate]'
    dreamshard synthesize
    python -m examples.calibrate_openvino

For your own teacher, name its parameter file:

    python -m examples.calibrate_openvino mine/params.yaml

NNCF sends usage statistics to its maker. This example turns that off by the variable ``NNCF_CI``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("NNCF_CI", "1")

import nncf
import openvino
import torch

import pipeline as ds
from pipeline.consumers.images import calibration_images
from pipeline.consumers.nncf import nncf_dataset
from pipeline.synthesis.check import load_checked_teacher


def main(params: str = "params.yaml", images: int = 256) -> Path:
    """Write the quantised teacher as ``teacher-int8.xml``.

    Args:
        params: the parameter file.
        images: how many synthetic images calibrate, at least 1.

    Returns:
        The file in ``paths.reports``.
    """
    config = ds.load_params(params)
    teacher = load_checked_teacher(config)
    folder = Path(config.paths.reports)
    folder.mkdir(parents=True, exist_ok=True)

    example = torch.zeros(1, *teacher.shape)
    model = openvino.convert_model(
        teacher.network.cpu(), example_input=example, input=[-1, *teacher.shape]
    )

    dataset = ds.Dataset(config.paths.dataset)
    calibration = nncf_dataset(calibration_images(dataset, images))
    quantised = nncf.quantize(model, calibration, subset_size=images)
    openvino.save_model(quantised, folder / "teacher-int8.xml")
    return folder / "teacher-int8.xml"


if __name__ == "__main__":
    sys.stdout.write(f"wrote {main(sys.argv[1] if len(sys.argv) > 1 else 'params.yaml')}\n")
