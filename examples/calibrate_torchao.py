"""Quantise the example teacher to 8 bits with torchao's PT2E, calibrated by its synthetic dataset.

    pip install -c constraints.txt -e '.[calibrate]'
    dreamshard synthesize
    python -m examples.calibrate_torchao

For your own teacher, name its parameter file:

    python -m examples.calibrate_torchao mine/params.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

import pipeline as ds
from pipeline.consumers.images import calibration_images
from pipeline.consumers.torchao import calibrate
from pipeline.synthesis.check import load_checked_teacher


def main(params: str = "params.yaml", images: int = 256) -> Path:
    """Write the quantised teacher as ``teacher-int8.pt2``.

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

    # The graph takes batches of any size.
    inputs, shapes = (torch.zeros(2, *teacher.shape),), ({0: torch.export.Dim("batch")},)
    graph = torch.export.export(teacher.network.cpu(), inputs, dynamic_shapes=shapes).module()

    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(graph, quantizer)
    calibrate(prepared, calibration_images(ds.Dataset(config.paths.dataset), images, batch=32))
    quantised = convert_pt2e(prepared)

    int8 = folder / "teacher-int8.pt2"
    torch.export.save(torch.export.export(quantised, inputs, dynamic_shapes=shapes), int8)
    return int8


if __name__ == "__main__":
    sys.stdout.write(f"wrote {main(sys.argv[1] if len(sys.argv) > 1 else 'params.yaml')}\n")
