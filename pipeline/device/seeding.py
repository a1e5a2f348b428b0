"""Seeds for all random generators that a network may use."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, Python and numpy.

    Network factories and random layers may use any of the three.

    Args:
        seed: Seed, 0 or more. numpy uses its lower 32 bits.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
