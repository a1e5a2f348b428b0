"""Two ImageNet networks of 224 pixels quantised by two tools, with real images, ours, and noise.

    python -m benchmarks.teachers.large OUT --teacher mobilenet --images 64
    python -m benchmarks.calibration.large OUT --teacher mobilenet --images 64

``OUT`` is the folder of the first command. It holds ``real-500.tar``: half of its photographs are
those from which the row ``real`` is drawn, and the other half compares the networks. The script
prints how often a quantised network gives the class of the float network, and continues from
``OUT/calibration-TEACHER-IMAGES/rows.json``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.calibration.rows import Study, noise, parse_bits
from benchmarks.calibration.tools import float_classes
from benchmarks.teachers.large import JUDGES, network, photographs
from pipeline.consumers.images import CalibrationImages, calibration_images
from pipeline.dataset.dataset import Dataset
from pipeline.params import parse_params
from pipeline.teachers.teacher import load_teacher

BATCH = 8


def study(options: argparse.Namespace) -> Study:
    """The study that the options describe. All seeds split the photographs alike."""
    facts = network(options.teacher, options.out)
    student = {"source": facts["source"]}
    params = parse_params({"teacher": facts, "student": student, "synthesis": {"images": 1}})
    teacher = load_teacher(params.teacher, torch.device("cpu"))
    pixels = photographs(options.out / "real-500.tar")[0].numpy()
    order = np.random.default_rng(0).permutation(len(pixels))
    calibrating, tested = pixels[order[: len(order) // 2]], pixels[order[len(order) // 2 :]]

    def images(chosen: np.ndarray) -> CalibrationImages:
        return CalibrationImages(chosen, teacher.preprocessing, BATCH)

    def real(seed: int) -> CalibrationImages:
        drawn = np.random.default_rng(seed).permutation(len(calibrating))
        return images(calibrating[drawn[: options.images]])

    def synthetic(seed: int) -> CalibrationImages:
        dataset = Dataset(options.out / f"{options.teacher}-dataset")
        return calibration_images(dataset, options.images, seed=seed, batch=BATCH)

    held_out = images(tested)
    return Study(
        teacher=teacher,
        out=options.out / f"calibration-{options.teacher}-{options.images}",
        sources={
            "real": real,
            "synthetic": synthetic,
            "noise": lambda seed: noise(images(calibrating[: options.images]), seed),
        },
        tested=held_out,
        expected=float_classes(teacher, held_out),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", choices=JUDGES, default="mobilenet")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--tools", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--bits", nargs="+", default=["W8A8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, widths = study(options), [parse_bits(text) for text in options.bits]
    found.measure(options.tools, widths, options.seeds)
    sys.stdout.write(f"agreement on {len(found.expected)} photographs, in per cent\n")
    for line in found.table(options.tools, widths, options.seeds):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
