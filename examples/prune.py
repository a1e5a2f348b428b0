"""Prune the example teacher with Torch-Pruning and its synthetic dataset, then train it again.

    pip install -c constraints.txt -e '.[prune]'
    dreamshard synthesize
    python -m examples.prune

With a teacher of your own, name its parameter file: ``python -m examples.prune mine/params.yaml``.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

import pipeline as ds
from pipeline.dataset.stream import Batch
from pipeline.distillation.step import Training
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.teacher import Teacher

LEAST = 50  # pruning steps at least: each removes at most this part of all channels
BATCHES = 4  # of each pruning step: their gradients decide which channels it removes


def prune(teacher: Teacher, batches: Iterator[Batch], share: float) -> nn.Module:
    """A copy of the teacher's network without its least important channels.

    The importance of a channel is the first-order Taylor estimate of what its removal does to the
    loss (Molchanov et al., CVPR 2019).

    Args:
        teacher: the teacher. It keeps its weights.
        batches: images of the dataset and their classes.
        share: part of the multiply-adds to remove.
    """
    network = copy.deepcopy(teacher.network).requires_grad_(True)
    one = torch.zeros(1, *teacher.shape)
    goal = (1 - share) * tp.utils.count_ops_and_params(network, one)[0]
    # The logits stay. Add here layers that Torch-Pruning cannot prune in your network, such as
    # those whose output a shortcut pads with channels.
    sizes = {m: getattr(m, "out_features", None) for m in network.modules()}
    pruner = tp.pruner.BasePruner(
        network,
        one,
        importance=tp.importance.GroupTaylorImportance(normalizer=None),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        iterative_steps=LEAST,
        ignored_layers=[m for m, size in sizes.items() if size == teacher.classes],
    )
    for _ in range(LEAST):
        network.zero_grad()
        for _, (pixels, labels) in zip(range(BATCHES), batches, strict=False):
            F.cross_entropy(network(teacher.preprocessing.normalise(pixels)), labels).backward()
        pruner.step()
        if tp.utils.count_ops_and_params(network, one)[0] <= goal:
            break
    return network


def main(params: str = "params.yaml", share: float = 0.3, steps: int = 300) -> Path:
    """Write the pruned network, a whole ``nn.Module``, to ``pruned.pt`` in ``paths.reports``."""
    config = ds.load_params(params)
    teacher, dataset = load_checked_teacher(config), ds.Dataset(config.paths.dataset)
    # Trained weights need a smaller learning rate than the random ones of a student.
    changes = {"steps": steps, "warmup": steps // 10, "learning_rate": 0.02}
    training_config = config.distillation.for_images(len(dataset)).model_copy(update=changes)
    batches = dataset.stream(training_config.batch_size, keep=len(dataset))

    # The steps of `dreamshard distill`, with the pruned network as the student.
    training = Training(teacher, prune(teacher, batches, share), training_config, seed=0)
    with training:
        for number, (pixels, _) in zip(range(steps), batches, strict=False):
            training.step(number, pixels)
    out = Path(config.paths.reports) / "pruned.pt"
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(training.published().eval(), out)
    return out


if __name__ == "__main__":
    sys.stdout.write(f"wrote {main(*sys.argv[1:2])}\n")
