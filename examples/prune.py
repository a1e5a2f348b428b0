"""Prune the example teacher with Torch-Pruning and its synthetic dataset, then train it again.

    pip install -c constraints.txt -e '.[prune]'
    dreamshard synthesize
    python -m examples.prune params.yaml

docs/uses.md says what to change for a network of your own.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

import pipeline as ds
from pipeline.distillation.step import Training
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.teacher import Teacher

MOST = 50  # pruning steps at most. Each removes 1 / MOST of all channels
BATCHES, SIZE = 4, 125  # batches of a pruning step, whose gradients choose the channels


def prune(teacher: Teacher, dataset: ds.Dataset, share: float) -> nn.Module:
    """Return a copy of the teacher's network with fewer channels.

    The channels with the least first-order Taylor importance are removed (Molchanov et al. 2019).

    Args:
        teacher: the teacher.
        dataset: its synthetic dataset. The labels give the loss for the importance.
        share: how much of the multiply-adds to remove, from 0 to 1.

    Raises:
        SystemExit: the network cannot lose so many multiply-adds.
    """
    network = copy.deepcopy(teacher.network).requires_grad_(True)
    one = torch.zeros(1, *teacher.shape)
    goal = (1 - share) * tp.utils.count_ops_and_params(network, one)[0]
    # The layer of the logits keeps its outputs. Add the layers that your network cannot prune.
    sizes = {layer: getattr(layer, "out_features", None) for layer in network.modules()}
    pruner = tp.pruner.BasePruner(
        network,
        one,
        importance=tp.importance.GroupTaylorImportance(normalizer=None),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        iterative_steps=MOST,
        ignored_layers=[layer for layer, size in sizes.items() if size == teacher.classes],
    )
    batches = dataset.stream(min(SIZE, len(dataset)), keep=len(dataset))
    for _ in range(MOST):
        network.zero_grad()
        for _, (pixels, labels) in zip(range(BATCHES), batches, strict=False):
            F.cross_entropy(network(teacher.preprocessing.normalise(pixels)), labels).backward()
        pruner.step()
        if tp.utils.count_ops_and_params(network, one)[0] <= goal:
            return network
    raise SystemExit(f"{share:.0%} of the multiply-adds cannot be pruned: lower the share")


def main(params: str = "params.yaml", share: float = 0.3, steps: int = 300) -> Path:
    """Write the pruned network, a whole ``nn.Module``, to ``pruned.pt`` in ``paths.reports``.

    Args:
        params: the parameter file.
        share: how much of the multiply-adds to remove, from 0 to 1.
        steps: training steps of the recovery.

    Returns:
        The file.
    """
    config = ds.load_params(params)
    teacher, dataset = load_checked_teacher(config), ds.Dataset(config.paths.dataset)
    # Train as `dreamshard distill` does. Trained weights need a smaller learning rate.
    changes = {"steps": steps, "warmup": steps // 10, "learning_rate": 0.02}
    how = config.distillation.for_images(len(dataset)).model_copy(update=changes)
    training = Training(teacher, prune(teacher, dataset, share), how, seed=0)
    batches = dataset.stream(how.batch_size, keep=len(dataset))
    with training:
        for number, (pixels, _) in zip(range(steps), batches, strict=False):
            training.step(number, pixels)
    out = Path(config.paths.reports) / "pruned.pt"
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(training.published().eval(), out)
    return out


if __name__ == "__main__":
    sys.stdout.write(f"wrote {main(sys.argv[1] if len(sys.argv) > 1 else 'params.yaml')}\n")
