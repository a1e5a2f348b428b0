from __future__ import annotations

import pytest

from tests.conftest import Params, changed


@pytest.fixture
def competing(tiny: Params) -> Params:
    """One adaptive round of 6 images after the 20 of the first synthesis."""
    return changed(tiny, {"adaptive.rounds": 1})
