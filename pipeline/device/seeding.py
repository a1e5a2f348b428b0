"""Seeds for all random generators that a network may use."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

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


@contextlib.contextmanager
def restored_generators() -> Iterator[None]:
    """Restore the global generators of torch, Python and numpy when the block ends.

    Other code of this process draws from them too: Prefect picks the port of its server so.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
