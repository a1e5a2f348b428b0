"""Compare objectives on Fashion-MNIST, with the same few images and student steps for each.

    python -m benchmarks.engine.objectives DATA OUT convnext "" "tv=0.1" "feature=1 zoom=1"

``DATA`` and ``OUT`` are those of ``benchmarks.teachers.fashion``, whose teachers are used, and
trained if they are missing. Each further argument changes fields of the teacher's default
objective. A row of the result has

- the share of images that an independent CNN assigns to their label,
- the Fréchet distance of their features in this CNN to those of real images,
- the mean cosine of two images of a class in this CNN,
- the accuracy on real images of a student after ``--steps``.

Rows are appended to ``OUT/objectives.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.teachers.fashion import JUDGE, MEAN, STD, accuracy, load, pairs, read_split, weights
from benchmarks.teachers.grey_networks import NETWORKS
from pipeline.config.distillation import DistillationConfig
from pipeline.device.threads import use_threads
from pipeline.distillation.step import Training
from pipeline.errors import UserError
from pipeline.evaluation.similarity import frechet_distance, mean_cosine
from pipeline.exit_codes import report_errors
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import invert
from pipeline.objective.bn_statistics import batchnorm_layers
from pipeline.objective.presets import PRESETS, Objective
from pipeline.params import parse_overrides
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher

BATCH = 256
_ONE = torch.ones(1, 1, 1, 1)
PREPROCESSING = Preprocessing(_ONE * MEAN, _ONE * STD)


@dataclass(frozen=True, slots=True)
class Real:
    """The test images, the independent CNN, and its features of the test images."""

    pixels: Tensor
    labels: Tensor
    judge: nn.Module
    trunk: nn.Module  # The judge without its last layer.
    features: Tensor


def changed(base: Objective, text: str) -> Objective:
    """Return ``base`` with changed fields. ``text`` has ``field=value`` pairs between spaces."""
    fields = parse_overrides(text.split())
    for name in fields:
        if not hasattr(base, name):
            raise UserError(f"no field {name!r}: use {', '.join(asdict(base))}")
    return replace(base, **fields)


def outputs(network: nn.Module, pixels: Tensor) -> Tensor:
    """Compute the outputs of ``network`` on uint8 images."""
    with torch.no_grad():
        parts = [network(PREPROCESSING.normalise(part)) for part in pixels.split(500)]
    return torch.cat(parts)


def class_cosine(features: Tensor, labels: Tensor) -> float:
    """Compute the mean cosine of two images of a class, averaged over the classes."""
    cosines = [mean_cosine(features[labels == label]) for label in labels.unique()]
    return sum(cosines) / len(cosines)


def made(teacher: Teacher, objective: Objective, labels: Tensor, iterations: int) -> Tensor:
    """Make uint8 images of ``labels``."""
    torch.compiler.reset()
    with Engine(teacher, objective, "auto", compiled=True) as engine:
        parts = [
            invert(engine, part, seed, iterations).pixels
            for seed, part in enumerate(labels.split(BATCH))
        ]
    return torch.cat(parts)


def batches(pixels: Tensor, size: int, steps: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while steps > 0:
        for index in torch.randperm(len(pixels), generator=generator).split(size)[:steps]:
            yield pixels[index]
            steps -= 1


def student_accuracy(
    teacher: Teacher, name: str, pixels: Tensor, real: Real, config: DistillationConfig
) -> float:
    torch.manual_seed(0)
    training = Training(teacher, NETWORKS[name](), config, seed=0)
    with training:
        for number, batch in enumerate(batches(pixels, config.batch_size, config.steps)):
            training.step(number, batch)
    network = training.published().eval()
    return accuracy(network, pairs(real.pixels, real.labels))


def row(teacher: Teacher, text: str, real: Real, options: argparse.Namespace) -> dict[str, Any]:
    """Make images and a student with the teacher's default objective, changed as ``text`` says."""
    has_batchnorm = bool(batchnorm_layers(teacher.network))
    base = PRESETS["normalised" if has_batchnorm else "without-batchnorm"]
    objective = changed(base, text)
    labels = torch.arange(options.images) % teacher.classes
    started = time.perf_counter()
    pixels = made(teacher, objective, labels, options.iterations)
    seconds = time.perf_counter() - started
    features = outputs(real.trunk, pixels)
    config = DistillationConfig(
        steps=options.steps,
        threads=options.threads,
        optimizer=options.optimizer,
        temperature=options.temperature,
        procedural=0.0,  # the images alone teach
        adversarial=0.0,
    )
    return {
        "teacher": options.teacher,
        "change": text,
        "images": options.images,
        "iterations": options.iterations,
        "seconds": round(seconds, 1),
        "teacher_agreement": accuracy(teacher.network, pairs(pixels, labels)),
        "confirmed": accuracy(real.judge, pairs(pixels, labels)),
        "frechet": frechet_distance(features, real.features),
        "cosine": class_cosine(features - real.features.mean(0), labels),
        "steps": options.steps,
        "student": student_accuracy(teacher, options.student, pixels, real, config),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("teacher", choices=[name for name in NETWORKS if name != JUDGE])
    parser.add_argument("changes", nargs="+")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1000, help="steps of the student")
    parser.add_argument("--student", choices=list(NETWORKS), default=JUDGE)
    parser.add_argument("--optimizer", choices=["muon", "sgd"], default="muon")
    parser.add_argument("--temperature", type=float, default=50.0, help="temperature of Eq. 1")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of the teacher")
    parser.add_argument("--threads", type=int, default=1)
    with report_errors() as outcome:
        options = parser.parse_args()
        use_threads(options.threads)
        nets = [
            load(name, weights(name, options.data, options.out, options.epochs))
            for name in (options.teacher, JUDGE)
        ]
        network = nets[0].requires_grad_(False)
        teacher = Teacher(network, PREPROCESSING, (1, 28, 28), 10, "")
        images, labels = read_split(options.data, "t10k")
        trunk = nn.Sequential(*list(nets[1].children())[:-1])
        real = Real(images, labels, nets[1], trunk, outputs(trunk, images))
        for change in options.changes:
            line = json.dumps(row(teacher, change, real, options))
            with (options.out / "objectives.jsonl").open("a") as file:
                file.write(line + "\n")
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
