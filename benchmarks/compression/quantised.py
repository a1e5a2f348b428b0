"""Train a ResNet-20 of CIFAR-10 at 4 and 3 bits: with real images, synthetic ones and noise.

    python -m pipeline synthesize --params examples/cifar10.yaml --set teacher.weights=WEIGHTS \\
        --set synthesis.images=5120 --set evaluation.data=null --set evaluation.verifier=null \\
        --set paths.dataset=DATASET --set paths.students=STUDENTS --set paths.reports=REPORTS
    python -m benchmarks.compression.quantised OUT --weights WEIGHTS --dataset DATASET \\
        --real CIFAR10

``CIFAR10`` holds ``train-*.tar`` and ``test-00000.tar`` (png and cls). The script prints the
accuracy on real test images, and continues from ``OUT``. The loss compares the logits with those of
the float network (Eq. 1), and images are augmented as ``distill`` does. ``fake_quantiser.py`` says
what is quantised. BatchNorm keeps the statistics of the float network, unless ``--batchnorm
images`` is given.

The last command is the full run: 18 rows (2 widths, 3 sources, 3 seeds) of 4,000 steps. A step
takes about 0.26 s of CPU time, a row about 17 minutes, all rows about 5 hours. The 5,120 images
take about 11 minutes. The rows of seed 0 come first. A stopped run loses at most 200 steps. For a
trial of some minutes add ``--images 64 --batch 64 --steps 10 --seeds 0 --test 500``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.calibration.rows import parse_bits
from benchmarks.compression import study
from benchmarks.compression.fake_quantiser import quantise
from pipeline.config.distillation import DistillationConfig
from pipeline.dataset.plan import derive_seed
from pipeline.distillation.augmentation import augment
from pipeline.distillation.loss import compare, compiled_compare
from pipeline.distillation.optimizers import Adam, learning_rate
from pipeline.teachers.teacher import Teacher

FIRST = 128  # images from which the first steps of the activations follow


class QuantisedTraining:
    """A fake-quantised network in training. Adam updates the weights and the steps.

    Args:
        teacher: the float network.
        network: its quantised copy.
        config: augmentation, temperature, steps and learning rate.
        seed: of the augmentation.
        fixed: keep the running statistics of BatchNorm.
    """

    def __init__(
        self,
        teacher: Teacher,
        network: nn.Module,
        config: DistillationConfig,
        seed: int,
        fixed: bool,
    ) -> None:
        self._teacher, self._network, self._config = teacher, network, config
        self._seed, self._fixed, self._space = seed, fixed, teacher.space()
        self._adam = Adam(list(network.parameters()), factor=1.0)
        self._compare = compiled_compare() if config.compile else compare

    def step(self, number: int, pixels: Tensor) -> float:
        """Train on one batch; returns the loss."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, number))
        clean = self._space.pixels.normalise(pixels.to(self._teacher.device))
        images = self._space.network_input(augment(clean, self._config, generator))
        self._network.train()
        for layer in self._network.modules():
            if self._fixed and isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        loss, _, _ = self._compare(
            self._teacher.network, self._network, images, self._config.temperature, None, 0.0
        )
        self._network.zero_grad()
        loss.backward()
        self._adam.step(learning_rate(self._config, number))
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        return {"network": self._network.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._network.load_state_dict(state["network"])
        self._adam.load_state_dict(state["adam"])


def measure(options: argparse.Namespace) -> study.Rows:
    """Measure all rows that the options ask for."""
    images = study.loaded(options)
    teacher = images.teacher
    config = DistillationConfig(
        steps=options.steps,
        warmup=options.steps // 20,
        learning_rate=options.rate,
        compile=not options.eager,
    )

    def work(variant: str, source: str, seed: int, checkpoint: Path) -> study.Row:
        torch.manual_seed(seed)
        pixels = images.of(source, seed)
        first = torch.from_numpy(pixels[:: max(1, len(pixels) // FIRST)][:FIRST])
        inputs = teacher.preprocessing.normalise(first.to(teacher.device))
        network = quantise(teacher.network, parse_bits(variant), inputs)
        row = {"before": images.accuracy(network)}
        training = QuantisedTraining(teacher, network, config, seed, options.batchnorm == "teacher")
        study.take_steps(training, pixels, options.steps, options.batch, seed, checkpoint)
        return {**row, "accuracy": images.accuracy(network)}

    rows = study.Rows(options.out, study.settings(options, "batchnorm"))
    rows.measure(options.bits, options.sources, options.seeds, work)
    sys.stdout.write(f"float32: {images.accuracy(teacher.network):.2f}\n")
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = study.parser(__doc__, steps=4000, rate=1e-3)
    parser.add_argument("--bits", nargs="+", default=["W4A4", "W3A3"])
    parser.add_argument("--batchnorm", choices=("teacher", "images"), default="teacher")
    parser.add_argument("--eager", action="store_true", help="do not use torch.compile")
    options = parser.parse_args(arguments)
    rows = measure(options)
    for field in ("before", "accuracy"):
        for line in rows.table(options.bits, options.seeds, field):
            sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
