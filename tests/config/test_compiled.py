"""`synthesis.compile: auto` is decided by the parameters alone."""

from __future__ import annotations

import pytest

from pipeline.config.schema import COMPILED_FROM
from pipeline.params import parse_params
from pipeline.synthesis.spec import round_spec
from tests.conftest import Params, changed


@pytest.mark.parametrize(
    ("images", "iterations", "rounds", "compiled"),
    [
        (100, 200, 0, False),  # a first look
        (1000, 200, 0, True),
        (COMPILED_FROM - 1, 1, 0, False),
        (COMPILED_FROM, 1, 0, True),
        (400, 200, 0, False),
        (400, 200, 2, True),  # 1,000 images more
        (1000, 0, 0, False),
    ],
)
def test_auto_weighs_images_times_iterations(
    tiny: Params, images: int, iterations: int, rounds: int, compiled: bool
) -> None:
    changes = {"synthesis.images": images, "synthesis.iterations": iterations}
    changes |= {"adaptive.rounds": rounds, "adaptive.images": 500, "synthesis.compile": "auto"}
    params = changed(tiny, changes)
    for workers, device in ((1, "cpu"), (2, "cpu"), (8, "auto")):
        where = {"execution.workers": workers, "execution.device": device}
        config = parse_params(changed(params, where))
        assert config.compiled is compiled
        assert round_spec(config, 0, "", None)["compile"] is compiled


def test_auto_weighs_the_pixels_of_large_images(tiny: Params) -> None:
    large = {"teacher.input.height": 320, "teacher.input.width": 320}  # 100 times 32 x 32
    for images, compiled in ((999, False), (1000, True)):
        changes = {"synthesis.images": images, "synthesis.iterations": 1}
        changes |= {"synthesis.compile": "auto", **large}
        assert parse_params(changed(tiny, changes)).compiled is compiled


def test_true_and_false_stay_what_they_are(tiny: Params) -> None:
    few, many = {"synthesis.images": 2}, {"synthesis.images": 100_000}
    for value in (True, False):
        for size in (few, many):
            config = parse_params(changed(tiny, {**size, "synthesis.compile": value}))
            assert config.compiled is value
    del tiny["synthesis"]["compile"]
    assert parse_params(tiny).compiled is True
