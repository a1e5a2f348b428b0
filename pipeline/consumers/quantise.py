"""Quantise a network with ONNX Runtime, and compute the logits of an ONNX file.

ONNX Runtime has no integer kernels for 4-bit values on a CPU. So the optimisation of the graph is
off, and all operators between the rounded values are computed in float32, for all bit widths. The
logits are then the same on every machine. The 8-bit integer kernels of an optimised graph may give
other logits: those of CPUs without VNNI saturate.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.config.calibration import CalibrationConfig
from pipeline.consumers.images import Batch, CalibrationImages
from pipeline.consumers.onnxruntime import data_reader
from pipeline.consumers.packages import import_tool

INPUT = "images"
OPSET = 21  # the first opset with 4-bit integers
# ONNX Runtime's third method, Entropy, has as many bins as levels by default: it equals MinMax.
_METHODS = {"minmax": "MinMax", "percentile": "Percentile"}


def export_onnx(network: nn.Module, shape: tuple[int, int, int], path: Path) -> None:
    """Write a network as an ONNX file for inference, with BatchNorm folded into convolutions.

    Args:
        network: a network in eval mode, on the CPU. It takes ``[N, C, H, W]``.
        shape: channels, height and width of an image.
        path: the file to write. A file with the ending ``.whole.onnx`` next to it is temporary.

    Raises:
        UserError: a package of the extra ``calibrate`` is missing.
    """
    for name in ("onnxscript", "onnxruntime"):
        import_tool(name)
    shapes = import_tool("onnxruntime.quantization.shape_inference")
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    whole = path.with_suffix(".whole.onnx")
    with _quiet():
        torch.onnx.export(
            network,
            (torch.zeros(2, *shape),),
            whole,
            input_names=[INPUT],
            dynamic_shapes=({0: batch},),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        shapes.quant_pre_process(whole, path, skip_symbolic_shape=True)
    whole.unlink()


def quantise(model: Path, out: Path, images: CalibrationImages, how: CalibrationConfig) -> None:
    """Write a quantised copy of an ONNX file. The images decide the ranges of its activations.

    Args:
        model: a file that :func:`export_onnx` wrote.
        out: the file to write.
        images: the images of the calibration.
        how: the bit widths and the method. Its number of images and its seed are not used.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    tool = import_tool("onnxruntime.quantization")
    if how.method == "percentile":  # ONNX Runtime needs batches of one size for its histograms
        images = replace(images, batch=math.gcd(len(images.pixels), images.batch))
    with _quiet():
        tool.quantize_static(
            model,
            out,
            data_reader(images, INPUT),
            per_channel=True,
            activation_type=getattr(tool.QuantType, f"QUInt{how.activation_bits}"),
            weight_type=getattr(tool.QuantType, f"QInt{how.weight_bits}"),
            calibrate_method=getattr(tool.CalibrationMethod, _METHODS[how.method]),
        )


def logits(model: Path, batches: Iterable[Batch]) -> NDArray[np.float32]:
    """Compute the logits of an ONNX file with one thread.

    Args:
        model: a file of :func:`export_onnx` or :func:`quantise`.
        batches: images, float32 ``[B, C, H, W]`` each.

    Returns:
        Logits, float32 ``[N, classes]``.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    runtime = import_tool("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {INPUT: batch})[0] for batch in batches])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the output and the log lines of the tools, but not their errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
