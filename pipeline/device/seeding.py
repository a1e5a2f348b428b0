"""Seeds for every generator that a network may draw from."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """torch's generators, Python's and numpy's: factories and stochastic layers use any of them."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
