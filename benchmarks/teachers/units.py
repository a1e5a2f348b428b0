"""One ResNet-20 of CIFAR-10 under five input conventions: the images and students must be alike.

    python -m benchmarks.teachers.units OUT [--images 512] [--steps 500] [--seed 0]

``OUT`` holds ``resnet20.th``, ``resnet32.th`` and ``test-00000.tar``, as for
``benchmarks.students.study``, which makes and keeps the results. The objective is the default one.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.students.study import shown
from examples.cifar10 import resnet
from pipeline.execution.runner import JobsFailed
from pipeline.exit_codes import report_errors

TRAINED = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CONVENTIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "standardised": TRAINED,
    "0_to_1": ((0.0,) * 3, (1.0,) * 3),
    "0_to_255": ((0.0,) * 3, (1 / 255,) * 3),
    "-1_to_1": ((0.5,) * 3, (0.5,) * 3),
    "minus_0.5": ((0.5,) * 3, (1.0,) * 3),
}


def network(convention: str, blocks: int = 3) -> nn.Module:
    """A ResNet that was trained on standardised images and expects those of ``convention``.

    The parameters have the same names as those of :func:`examples.cifar10.resnet`.
    """
    built = resnet(blocks)
    if convention != "standardised":
        (mean, std), (trained_mean, trained_std) = (
            [torch.tensor(row).view(1, -1, 1, 1) for row in rows]
            for rows in (CONVENTIONS[convention], TRAINED)
        )
        scale, offset = std / trained_std, (mean - trained_mean) / trained_std
        built.register_forward_pre_hook(functools.partial(_convert, scale=scale, offset=offset))
    return built


def _convert(module: nn.Module, inputs: tuple[Tensor], scale: Tensor, offset: Tensor) -> Tensor:
    return inputs[0] * scale + offset


def row_of(convention: str) -> str:
    """The changes of :mod:`benchmarks.students.study` for one convention."""
    mean, std = CONVENTIONS[convention]
    changes: dict[str, Any] = {
        "teacher.source": "benchmarks.teachers.units:network",
        "teacher.arguments": {"convention": convention},
        "teacher.input": {"channels": 3, "height": 32, "width": 32, "mean": mean, "std": std},
        "synthesis.objective": {},
    }
    return " ".join(
        f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in changes.items()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    with report_errors() as outcome:
        options = parser.parse_args()
        options.threads = options.workers = 1
        options.device = "cpu"
        failed = [name for name in CONVENTIONS if not shown(row_of(name), options)]
        if failed:
            raise JobsFailed(f"conventions that failed: {', '.join(failed)}")
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
