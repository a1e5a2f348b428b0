"""Calibrate a segmenter to int8 from unlabelled shards, and compare with real images and noise.

    python -m benchmarks.segmenter.study OUT

It trains the segmenter, makes the shards with ``teacher.labels: none``, and quantises with ONNX
Runtime (``pip install onnxruntime``): weights int8, one scale a channel, activations of 8 or 4 bits
with the ranges of the smallest and the largest value (MinMax). ``OUT`` gets the weights, the
dataset, and ``segmenter.json``. A second call continues.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.machine import describe
from benchmarks.segmenter.network import (
    EVALUATION,
    MEAN,
    STD,
    STEPS,
    Segmenter,
    mean_iou,
    normalise,
    train,
)
from benchmarks.segmenter.shapes import SIDE, draw
from pipeline.dataset.dataset import Dataset
from pipeline.device.threads import use_threads
from pipeline.execution.runner import open_runner
from pipeline.exit_codes import report_errors
from pipeline.params import parse_params
from pipeline.reports.files import report_synthesis
from pipeline.stages.synthesize import synthesize
from pipeline.storage import write_json
from pipeline.synthesis.check import load_checked_teacher

SEEDS, IMAGES = 3, 64  # calibration subsets, and the images of each
BITS = (8, 4)
log = logging.getLogger("segmenter")


def make_images(out: Path, iterations: int) -> Tensor:
    """The unlabelled images, uint8 ``[N, 3, SIDE, SIDE]``, made by the ordinary stages."""
    values = {
        "teacher": {
            "source": "benchmarks.segmenter.network:segmenter",
            "weights": str(out / "segmenter.safetensors"),
            "labels": "none",
            "input": {
                **{"channels": 3, "height": SIDE, "width": SIDE},
                **{"mean": [MEAN] * 3, "std": [STD] * 3},
            },
        },
        "synthesis": {
            **{"images": SEEDS * IMAGES, "shard_size": IMAGES, "batch_size": IMAGES},
            **{"iterations": iterations, "compile": False, "precision": "float32"},
        },
        "execution": {"device": "cpu", "workers": 1},
        "paths": {name: str(out / name) for name in ("dataset", "students", "reports")},
    }
    config = parse_params(values)
    teacher = load_checked_teacher(config, "dataset", "reports")
    with open_runner(config, config.synthesis.threads) as run:
        report_synthesis(config, synthesize(config, teacher, run))
    return torch.cat([pixels for pixels, _ in Dataset(config.paths.dataset).batches(IMAGES)])


def calibration_sets(made: Tensor, seed: int) -> dict[str, NDArray[np.float32]]:
    """The images of a seed from each source, as the segmenter takes them."""
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.integers(0, 256, (IMAGES, 3, SIDE, SIDE), np.uint8))
    pixels = {
        "real": torch.from_numpy(draw(IMAGES, seed=1000 + seed)[0]),  # pictures of the training
        "dreamshard": made[seed * IMAGES : (seed + 1) * IMAGES],
        "noise": noise,
    }
    return {name: normalise(images).numpy() for name, images in pixels.items()}


class _Reader:
    """Gives images to ONNX Runtime's calibration, one batch at a time."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self._batches: Iterator[NDArray[np.float32]] = iter(np.split(images, 4))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


class _Logits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)["out"]
        return logits


def write_onnx(network: nn.Module, path: Path) -> None:
    """Write the segmenter in float32, with BatchNorm folded into the convolutions."""
    torch.onnx.export(
        _Logits(network),
        (torch.zeros(2, 3, SIDE, SIDE),),
        str(path),
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=21,
        dynamo=False,
    )


def quantised(model: Path, images: NDArray[np.float32], bits: int, path: Path) -> Path:
    """Quantise by ONNX Runtime: QDQ, int8 weights by channel, MinMax ranges of activations."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        str(model),
        str(path),
        _Reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type={8: QuantType.QUInt8, 4: QuantType.QUInt4}[bits],
        calibrate_method=CalibrationMethod.MinMax,
    )
    return path


def iou_of(model: Path) -> float:
    """The mean IoU of an ONNX model on pictures that nothing was trained or calibrated on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # ONNX Runtime has no integer kernels for 4 bits, so that both widths compute the QDQ model.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    pixels, classes = (torch.from_numpy(part) for part in draw(EVALUATION, seed=7))
    answers = [
        torch.from_numpy(session.run(None, {"images": normalise(part).numpy()})[0]).argmax(1)
        for part in pixels.split(64)
    ]
    return mean_iou(torch.cat(answers), classes)


def study(out: Path, steps: int, iterations: int) -> dict[str, Any]:
    """Train, make the images, quantise and measure."""
    started = time.perf_counter()
    weights = out / "segmenter.safetensors"
    if not weights.is_file():
        save_file(train(steps=steps).state_dict(), weights)
    network = Segmenter().eval()
    network.load_state_dict(load_file(weights))
    log.info("trained after %.0f s", time.perf_counter() - started)
    made = make_images(out, iterations)
    log.info("images made after %.0f s", time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "float.onnx"
        write_onnx(network, model)
        found: dict[str, Any] = {
            "weights": sum(parameter.numel() for parameter in network.parameters()),
            "float": round(iou_of(model), 4),
        }
        log.info("float: IoU %.4f", found["float"])
        for bits in BITS:
            for seed in range(SEEDS):
                for name, images in calibration_sets(made, seed).items():
                    path = quantised(model, images, bits, Path(folder) / "int.onnx")
                    found.setdefault(f"A{bits}", {}).setdefault(name, []).append(
                        round(iou_of(path), 4)
                    )
            log.info("W8A%d: %s", bits, found[f"A{bits}"])
    return {**found, "machine": describe(torch.device("cpu"))}


def main(arguments: list[str] | None = None) -> int:
    """Run the study and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the training")
    parser.add_argument("--iterations", type=int, default=200, help="of the images")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with report_errors() as outcome:
        options = parser.parse_args(arguments)
        options.out.mkdir(parents=True, exist_ok=True)
        use_threads(1)
        facts = study(options.out, options.steps, options.iterations)
        write_json(options.out / "segmenter.json", facts)
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
