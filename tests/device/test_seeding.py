"""The global random generators of torch, Python and numpy."""

from __future__ import annotations

import random

import numpy as np
import torch

from pipeline.device.seeding import restored_generators, seed_all
from tests.conftest import Params, load


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_generators_are_restored_after_an_error_too() -> None:
    seed_all(7)
    expected = drawn()
    seed_all(7)
    try:
        with restored_generators():
            seed_all(0)
            drawn()
            raise ValueError
    except ValueError:
        pass
    assert drawn() == expected


def test_loading_a_teacher_leaves_the_generators_as_they_were(tiny: Params) -> None:
    seed_all(7)
    expected = drawn()
    seed_all(7)
    load(tiny)
    assert drawn() == expected
