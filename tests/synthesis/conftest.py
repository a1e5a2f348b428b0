from __future__ import annotations

import pytest

from tests.conftest import Params, changed


@pytest.fixture
def competing(tiny: Params) -> Params:
    """Parameters of a run of 20 images and one adaptive round of 6 images."""
    return changed(tiny, {"adaptive.rounds": 1})
