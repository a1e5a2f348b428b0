"""Prune a ResNet-20 of CIFAR-10, and recover it: with real images, synthetic ones and noise.

    python -m pipeline synthesize --params examples/cifar10.yaml ...   # as for `quantised`
    python -m benchmarks.compression.pruned OUT --weights WEIGHTS --dataset DATASET --real CIFAR10

``CIFAR10`` holds ``train-*.tar`` and ``test-00000.tar`` (png and cls). The script prints the
accuracy on real test images before and after the recovery, and continues from ``OUT``.

Torch-Pruning removes channels by their first-order Taylor importance, until 30 % of the
multiply-adds are gone. It prunes inside the blocks: a shortcut of this network pads channels, which
Torch-Pruning cannot follow. The label of an image is the class that the network gives it, with each
source. The recovery takes the steps of ``distill``, with the unpruned network as the teacher.

The last command is the full run: 9 rows (3 sources, 3 seeds) of 2,000 steps. A step takes about
0.25 s of CPU time where bfloat16 is fast, a row about 10 minutes, all rows about 90 minutes. The
rows of seed 0 come first. A stopped run loses at most 200 steps and the pruning, which it repeats.
For a trial of some minutes add ``--images 64 --batch 64 --steps 10 --seeds 0 --test 500``.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from benchmarks.compression import study
from examples.cifar10 import Block
from pipeline.config.distillation import DistillationConfig
from pipeline.dataset.tar import Pixels
from pipeline.distillation.step import Training
from pipeline.teachers.teacher import Teacher

MOST = 200  # pruning steps: each removes this part of all channels that may be pruned
BATCH, BATCHES = 128, 2  # of each pruning step: their gradients decide which channels it removes


def multiply_adds(network: nn.Module, teacher: Teacher) -> float:
    """Multiply-adds of one image."""
    one = torch.zeros(1, *teacher.shape, device=teacher.device)
    return float(tp.utils.count_ops_and_params(network, one)[0])


def prune(teacher: Teacher, pixels: Pixels, share: float) -> nn.Module:
    """A copy of the teacher's network without ``share`` of its multiply-adds."""
    network = copy.deepcopy(teacher.network).requires_grad_(True)
    goal = (1 - share) * multiply_adds(network, teacher)
    inner = {block.conv1 for block in network.modules() if isinstance(block, Block)}
    layers = [each for each in network.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    pruner = tp.pruner.BasePruner(
        network,
        torch.zeros(1, *teacher.shape, device=teacher.device),
        importance=tp.importance.GroupTaylorImportance(normalizer=None),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        iterative_steps=MOST,
        ignored_layers=[layer for layer in layers if layer not in inner],
    )
    batches = torch.from_numpy(pixels).split(BATCH)
    for number in range(MOST):
        network.zero_grad()
        for place in range(BATCHES):
            batch = batches[(number * BATCHES + place) % len(batches)].to(teacher.device)
            images = teacher.preprocessing.normalise(batch)
            with torch.no_grad():
                labels = teacher.network(images).argmax(1)
            F.cross_entropy(network(images), labels).backward()
        pruner.step()
        if multiply_adds(network, teacher) <= goal:
            return network
    raise SystemExit(f"{share:.0%} of the multiply-adds cannot be pruned: lower --share")


def measure(options: argparse.Namespace) -> study.Rows:
    """Measure all rows that the options ask for."""
    images = study.loaded(options)
    teacher = images.teacher
    config = DistillationConfig(
        steps=options.steps,
        batch_size=options.batch,
        learning_rate=options.rate,
        imitation=options.imitation,
        adversarial=options.adversarial,
        procedural=options.procedural,
        precision="float32" if options.eager else "auto",
        compile=not options.eager,
    )

    def work(variant: str, source: str, seed: int, checkpoint: Path) -> study.Row:
        torch.manual_seed(seed)
        pixels = images.of(source, seed)
        network = prune(teacher, pixels, options.share)
        left = multiply_adds(network, teacher) / multiply_adds(teacher.network, teacher)
        row = {"multiply-adds": round(100 * left, 2), "before": images.accuracy(network)}
        training = Training(teacher, network, config, seed)
        with training:
            study.take_steps(training, pixels, options.steps, options.batch, seed, checkpoint)
        return {**row, "accuracy": images.accuracy(training.published())}

    names = ("share", "imitation", "adversarial", "procedural")
    rows = study.Rows(options.out, study.settings(options, *names))
    rows.measure(["pruned"], options.sources, options.seeds, work)
    sys.stdout.write(f"unpruned: {images.accuracy(teacher.network):.2f}\n")
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = study.parser(__doc__, steps=2000, rate=0.05)
    parser.add_argument("--share", type=float, default=0.3, help="of the multiply-adds to remove")
    parser.add_argument("--imitation", type=float, default=0.0, help="weight of feature maps")
    parser.add_argument("--adversarial", type=float, default=0.4, help="as for `distill`")
    parser.add_argument("--procedural", type=float, default=0.5, help="as for `distill`")
    parser.add_argument("--eager", action="store_true", help="float32, without torch.compile")
    options = parser.parse_args(arguments)
    rows = measure(options)
    for field in ("multiply-adds", "before", "accuracy"):
        for line in rows.table(["pruned"], options.seeds, field):
            sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
