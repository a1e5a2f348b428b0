"""Random tensors and layer statistics that the tests of this folder share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.objective.bn_statistics import LayerStatistics


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: Tensor) -> np.ndarray:
    values = np.exp(logits.double().numpy() - logits.double().numpy().max(1, keepdims=True))
    return np.asarray(values / values.sum(1, keepdims=True))


def layers(count: int = 2, channels: int = 3) -> list[LayerStatistics]:
    return [
        LayerStatistics(
            mean=random(channels, seed=4 * index),
            variance=random(channels, seed=4 * index + 1).abs() + 0.1,
            running_mean=random(channels, seed=4 * index + 2),
            running_variance=random(channels, seed=4 * index + 3).abs() + 0.1,
        )
        for index in range(count)
    ]
