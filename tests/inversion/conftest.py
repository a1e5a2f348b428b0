from __future__ import annotations

import pytest

from pipeline.teachers.teacher import Teacher
from tests.conftest import Params, load


@pytest.fixture
def teacher(tiny: Params) -> Teacher:
    return load(tiny)[1]
