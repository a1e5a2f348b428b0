"""The examples in the docstrings of the terms give the results that they show."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from pipeline.inversion import capacity, fingerprints, usefulness
from pipeline.objective import classification, compete, image_priors, presets

MODULES = [classification, compete, image_priors, presets, capacity, fingerprints, usefulness]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
