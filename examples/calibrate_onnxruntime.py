"""Quantise the example teacher to 8 bits with ONNX Runtime, calibrated by its synthetic dataset.

    pip install -c constraints.txt -e '.[calibrate]'
    dreamshard synthesize
    python -m examples.calibrate_onnxruntime

For your own teacher, name its parameter file:

    python -m examples.calibrate_onnxruntime mine/params.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import pipeline as ds
from pipeline.consumers.images import calibration_images
from pipeline.consumers.onnxruntime import data_reader
from pipeline.synthesis.check import load_checked_teacher


def main(params: str = "params.yaml", images: int = 256) -> Path:
    """Write the teacher as ``teacher.onnx``, and its 8-bit copy as ``teacher-int8.onnx``.

    Args:
        params: the parameter file.
        images: how many synthetic images calibrate, at least 1.

    Returns:
        The 8-bit file in ``paths.reports``.
    """
    config = ds.load_params(params)
    teacher = load_checked_teacher(config)
    folder = Path(config.paths.reports)
    folder.mkdir(parents=True, exist_ok=True)
    whole, model, int8 = (folder / f"teacher{end}.onnx" for end in ("-whole", "", "-int8"))

    # The exported network takes batches of any size. quant_pre_process folds its BatchNorm layers.
    batch = torch.export.Dim("batch")
    inputs, shapes = (torch.zeros(2, *teacher.shape),), ({0: batch},)
    torch.onnx.export(
        teacher.network.cpu(), inputs, whole, input_names=["images"], dynamic_shapes=shapes
    )
    quant_pre_process(whole, model)

    dataset = ds.Dataset(config.paths.dataset)
    quantize_static(
        model,
        int8,
        data_reader(calibration_images(dataset, images), "images"),
        per_channel=True,
        # Weights of 7 bits. With 8 bits the integer kernels of a CPU without VNNI saturate.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
    )
    return int8


if __name__ == "__main__":
    sys.stdout.write(f"wrote {main(sys.argv[1] if len(sys.argv) > 1 else 'params.yaml')}\n")
