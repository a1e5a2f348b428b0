"""Compare the teacher with its quantised copies: calibrated by the dataset, and by noise."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config.schema import Config
from pipeline.consumers.images import Batch, CalibrationImages, read_pixels
from pipeline.consumers.packages import import_tool
from pipeline.consumers.quantise import export_onnx, logits, quantise
from pipeline.dataset.dataset import Dataset
from pipeline.errors import UserError
from pipeline.evaluation.inputs import real_batches, real_data
from pipeline.exporting.source import Source, open_source
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher

MOST, FEWEST, BATCH = 1024, 16, 32
"""Most and fewest images that compare the networks, and the images in a batch."""


def calibrate(config: Config, teacher: Teacher) -> dict[str, Any]:
    """Quantise the teacher twice, and measure both copies.

    One copy has the ranges of ``calibration.images`` synthetic images, the other those of as many
    images of noise (uniform pixels). ``agreement`` is the share of held-out synthetic images to
    which a copy gives the same class as the teacher. Where real images are configured,
    ``accuracy`` and ``real_agreement`` are measured on them.

    Returns:
        The report.

    Raises:
        UserError: the teacher has no logits, a package is missing, or the dataset is not finished
            or has too few images.
    """
    if not teacher.labelled:
        raise UserError(
            "calibrate compares the classes of the teacher with those of its copies, and "
            "teacher.labels is none: calibrate your network with your tool and the images of "
            "dreamshard export, and compare its own outputs"
        )
    source, rest = _split(config)
    chosen, held_out = (_images(source, mask) for mask in (source.chosen, rest))
    noise = np.random.default_rng(config.calibration.seed).integers(
        0, 256, chosen.pixels.shape, np.uint8
    )
    sets = {"synthetic": chosen, "noise": replace(chosen, pixels=noise)}
    how = config.calibration
    report: dict[str, Any] = {
        "calibration": how.model_dump(mode="json"),
        "onnxruntime": import_tool("onnxruntime").__version__,
        "held_out_images": len(held_out.pixels),
    }
    real = None if config.evaluation.data is None else _Real(config, teacher)
    network = teacher.to(torch.device("cpu")).network
    with tempfile.TemporaryDirectory() as folder:
        model, copy = (Path(folder, f"{name}.onnx") for name in ("teacher", "quantised"))
        export_onnx(network, teacher.shape, model)
        expected = logits(model, held_out).argmax(1)
        if real is not None:
            real_expected = logits(model, real).argmax(1)
            report["real_images"] = len(real_expected)
            labels = real.labels()
            report["teacher_accuracy"] = _share(real_expected, labels)
        for name, images in sets.items():
            quantise(model, copy, images, how)
            report[name] = {"agreement": _share(logits(copy, held_out).argmax(1), expected)}
            if real is not None:
                classes = logits(copy, real).argmax(1)
                report[name] |= {
                    "accuracy": _share(classes, labels),
                    "real_agreement": _share(classes, real_expected),
                }
    return report


def describe_calibration(report: dict[str, Any]) -> list[str]:
    """The report as a table, one line each."""
    how = report["calibration"]
    title = f"{how['weight_bits']}-bit weights, {how['activation_bits']}-bit activations"
    kinds = {"synthetic": "synthetic images", "noise": "images of noise"}
    real = "real_images" in report
    head = f"{'agreement':>12}{'accuracy':>12}{'agreement on real images':>27}"
    lines = [f"{title + ', ' + how['method']:<46}{head if real else head[:12]}"]
    if real:
        lines.append(f"{'the teacher':<46}{'':>12}{report['teacher_accuracy']:>12.2%}")
    for kind, text in kinds.items():
        found = report[kind]
        columns = [("agreement", 12), ("accuracy", 12), ("real_agreement", 27)]
        values = [f"{found[key]:>{width}.2%}" for key, width in columns if key in found]
        name = f"calibrated with {how['images']} {text}"
        lines.append(f"{name:<46}{''.join(values)}")
    lines.append(
        f"agreement with the teacher on {report['held_out_images']} synthetic images that the "
        "calibration did not use"
    )
    if real:
        lines.append(f"accuracy on {report['real_images']} real images")
    return lines


class _Real:
    """The real images as batches for ONNX Runtime. Each iteration reads the tar again."""

    def __init__(self, config: Config, teacher: Teacher) -> None:
        self._data, self._shape = real_data(config), teacher.shape
        self._preprocessing = Preprocessing.of(config.teacher.input)

    def __iter__(self) -> Iterator[Batch]:
        for pixels, _ in real_batches(self._data, "evaluation.data", self._shape, BATCH):
            yield self._preprocessing.normalise(pixels).numpy()

    def labels(self) -> np.ndarray:
        batches = real_batches(self._data, "evaluation.data", self._shape, BATCH)
        return np.concatenate([labels.numpy() for _, labels in batches])


def _split(config: Config) -> tuple[Source, np.ndarray]:
    """The source of the calibration images, and which other images compare the networks."""
    dataset, images = Dataset(config.paths.dataset), config.calibration.images
    if len(dataset) < images + FEWEST:
        raise UserError(
            f"calibration.images is {images}, and {dataset.root} has {len(dataset)} images: at "
            f"least {FEWEST} others must compare the networks. Lower it, or make more images"
        )
    source = open_source(dataset, images, config.calibration.seed)
    size = config.teacher.input
    if source.shape != (size.channels, size.height, size.width):
        raise UserError(
            f"{dataset.root} holds images of {source.shape}, but teacher.input is "
            f"{(size.channels, size.height, size.width)}: run synthesize first"
        )
    others = np.flatnonzero(~source.chosen)
    np.random.default_rng(config.calibration.seed).shuffle(others)
    rest = np.zeros_like(source.chosen)
    rest[others[:MOST]] = True
    return source, rest


def _images(source: Source, chosen: np.ndarray) -> CalibrationImages:
    pixels = read_pixels(replace(source, chosen=chosen))
    return CalibrationImages(pixels, Preprocessing.of(source.input), BATCH)


def _share(left: np.ndarray, right: np.ndarray) -> float:
    """The fraction of places where two rows of classes are equal."""
    return round(float((left == right).mean()), 6)
