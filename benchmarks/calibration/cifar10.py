"""A ResNet-20 of CIFAR-10 quantised by three tools, calibrated with real images, ours, and noise.

    python -m pipeline synthesize --params examples/cifar10.yaml --set teacher.weights=WEIGHTS \\
        --set synthesis.images=1024 --set paths.dataset=DATASET ...
    python -m benchmarks.calibration.cifar10 OUT --weights WEIGHTS --dataset DATASET --real CIFAR10

``CIFAR10`` holds ``train-00000.tar`` and ``test-00000.tar`` (png and cls). The script prints the
accuracy on real test images as a table, and continues from ``OUT/rows.json``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.calibration.rows import Study, noise, parse_bits
from benchmarks.calibration.tools import TOOLS, float_classes
from pipeline.config.teacher import TeacherConfig
from pipeline.consumers.images import CalibrationImages, calibration_images
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.stream import ordered_batches
from pipeline.exporting.subset import choose
from pipeline.teachers.teacher import Teacher, load_teacher

BATCH = 32


def teacher_of(weights: Path) -> Teacher:
    """The ResNet-20 with the user's weights."""
    config = {
        "source": "examples.cifar10:resnet",
        "weights": str(weights),
        "classes": 10,
        "input": {
            "channels": 3,
            "height": 32,
            "width": 32,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
        },
    }
    return load_teacher(TeacherConfig.model_validate(config), torch.device("cpu"))


def read(tar: Path) -> tuple[np.ndarray, np.ndarray]:
    """All pixels and labels of a tar."""
    pixels, labels = zip(*ordered_batches([tar], 1000), strict=True)
    return torch.cat(pixels).numpy(), torch.cat(labels).numpy()


def study(options: argparse.Namespace) -> Study:
    """The study that the options describe."""
    teacher = teacher_of(options.weights)
    train, labels = read(options.real / "train-00000.tar")
    test, expected = read(options.real / "test-00000.tar")

    def images(pixels: np.ndarray) -> CalibrationImages:
        return CalibrationImages(pixels, teacher.preprocessing, BATCH)

    def real(seed: int) -> CalibrationImages:
        return images(train[choose(labels.astype(np.int16), options.images, seed)])

    def synthetic(seed: int) -> CalibrationImages:
        return calibration_images(Dataset(options.dataset), options.images, seed=seed, batch=BATCH)

    return Study(
        teacher=teacher,
        out=options.out,
        sources={
            "real": real,
            "synthetic": synthetic,
            "noise": lambda seed: noise(images(train[: options.images]), seed),
        },
        tested=images(test[: options.test]),
        expected=expected[: options.test],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--bits", nargs="+", default=["W8A8", "W8A4", "W4A8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--test", type=int, default=10_000, help="real test images, the first ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, widths = study(options), [parse_bits(text) for text in options.bits]
    found.measure(options.tools, widths, options.seeds)
    share = (float_classes(found.teacher, found.tested) == found.expected).mean()
    sys.stdout.write(f"float32: {share:.2%} of {len(found.expected)} test images\n")
    for line in found.table(options.tools, widths, options.seeds):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
