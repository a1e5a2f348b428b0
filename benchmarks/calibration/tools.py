"""One network quantised by three tools, each with its usual choice of ranges."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.calibration import CalibrationConfig
from pipeline.consumers.images import CalibrationImages
from pipeline.consumers.nncf import nncf_dataset
from pipeline.consumers.quantise import export_onnx, logits, quantise
from pipeline.consumers.torchao import calibrate
from pipeline.teachers.teacher import Teacher

os.environ.setdefault("NNCF_CI", "1")  # NNCF sends no statistics of its use

Classes = NDArray[np.int64]
Bits = tuple[int, int]  # of a weight, and of an activation
Quantised = Callable[[CalibrationImages], Classes]


def onnx_of(teacher: Teacher, folder: Path) -> Path:
    """The teacher as an ONNX file, written once."""
    path = folder / "teacher.onnx"
    if not path.is_file():
        export_onnx(teacher.network, teacher.shape, path)
    return path


def onnx_runtime(
    teacher: Teacher, folder: Path, images: CalibrationImages, bits: Bits, method: str = "minmax"
) -> Quantised:
    """Quantise with ``quantize_static``: one range a channel of a weight, one an activation."""
    how = CalibrationConfig.model_validate(
        {"weight_bits": bits[0], "activation_bits": bits[1], "method": method}
    )
    out = folder / f"ort-w{bits[0]}a{bits[1]}.onnx"
    quantise(onnx_of(teacher, folder), out, images, how)
    return lambda tested: logits(out, tested).argmax(1)


def open_vino(teacher: Teacher, folder: Path, images: CalibrationImages, bits: Bits) -> Quantised:
    """Quantise with ``nncf.quantize``; for 4 bits with the target device NPU, the only one it has.

    The CPU computes the FakeQuantize operators in float32.
    """
    import nncf
    import openvino

    options: dict[str, Any] = {}
    if min(bits) < 8:
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            QuantizationParameters,
        )

        each = [
            QuantizationParameters(num_bits=number, mode="symmetric", narrow_range=False)
            if number < 8
            else None
            for number in bits
        ]
        options = {
            "target_device": nncf.TargetDevice.NPU,
            "advanced_parameters": AdvancedQuantizationParameters(
                weights_quantization_params=each[0], activations_quantization_params=each[1]
            ),
        }
    if bits[1] < 8:  # a mean has no 4-bit form on the NPU: it stays in float32
        options["ignored_scope"] = nncf.IgnoredScope(types=["ReduceMean"])
    core = openvino.Core()
    model = core.read_model(onnx_of(teacher, folder))
    single = dataclasses.replace(images, batch=1)
    quantised = nncf.quantize(model, nncf_dataset(single), subset_size=len(single), **options)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(quantised, "CPU", exact)
    return lambda tested: np.concatenate([compiled(batch)[0].argmax(1) for batch in tested])


def torch_ao(teacher: Teacher, folder: Path, images: CalibrationImages, bits: Bits) -> Quantised:
    """Quantise with PT2E and the quantiser of x86, whose observers keep histograms."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    default = x86.get_default_x86_inductor_quantization_config()
    weight, activation = (2**number for number in bits)
    acts = dataclasses.replace(default.input_activation, quant_max=activation - 1)
    weights = dataclasses.replace(default.weight, quant_min=-weight // 2, quant_max=weight // 2 - 1)
    config = dataclasses.replace(
        default, input_activation=acts, output_activation=acts, weight=weights
    )
    inputs = (torch.zeros(2, *teacher.shape),)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    graph = torch.export.export(teacher.network, inputs, dynamic_shapes=shapes).module()
    prepared = prepare_pt2e(graph, x86.X86InductorQuantizer().set_global(config))
    calibrate(prepared, images)
    network = convert_pt2e(prepared)

    def classes(tested: CalibrationImages) -> Classes:
        with torch.no_grad():
            return torch.cat(
                [network(torch.from_numpy(batch)).argmax(1) for batch in tested]
            ).numpy()

    return classes


TOOLS: dict[str, Callable[[Teacher, Path, CalibrationImages, Bits], Quantised]] = {
    "onnxruntime": onnx_runtime,
    "onnxruntime-percentile": functools.partial(onnx_runtime, method="percentile"),
    "openvino": open_vino,
    "torchao": torch_ao,
}


def float_classes(teacher: Teacher, tested: CalibrationImages) -> Classes:
    """The classes that the float network gives."""
    with torch.no_grad():
        return torch.cat(
            [teacher.network(torch.from_numpy(batch)).argmax(1) for batch in tested]
        ).numpy()
