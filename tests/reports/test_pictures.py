"""The grids show the images that were made, however many classes the teacher has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.params import parse_params
from pipeline.reports.pictures import SIDE, TEXT, draw_grids
from tests.conftest import Params, changed, make


def thousand(tiny: Params, images: int, **changes: Any) -> Params:
    """``tiny`` with a teacher of 1,000 classes."""
    teacher = {
        **tiny["teacher"],
        "source": tiny["teacher"]["source"].replace("classifier", "without_batchnorm"),
        "arguments": {"classes": 1000},
        "weights": None,
        "classes": 1000,
        "class_names": None,
    }
    return changed({**tiny, "teacher": teacher}, {"synthesis.images": images, **changes})


def cells(picture: Path) -> list[list[bool]]:
    """Whether each place of a grid, by row and column, holds an image."""
    array = np.asarray(Image.open(picture).convert("L"))
    rows, columns = (array.shape[0] - TEXT) // (SIDE + TEXT), array.shape[1] // (SIDE + 4)
    found = []
    for row in range(rows):
        y = TEXT + row * (SIDE + TEXT)
        places = [2 + column * (SIDE + 4) for column in range(columns)]
        found.append([bool(array[y : y + SIDE, x : x + SIDE].std() > 1) for x in places])
    return found


def test_sixteen_images_of_a_thousand_classes_fill_the_grid(tiny: Params, tmp_path: Path) -> None:
    params = thousand(tiny, 16)
    make(params)
    (picture,) = draw_grids(parse_params(params), tmp_path / "reports")
    assert cells(picture) == [[True] * 16]


def test_columns_are_spread_over_the_classes_of_a_table(tiny: Params, tmp_path: Path) -> None:
    table = {label: 1 for label in range(0, 900, 30)} | {999: 3}
    params = thousand(tiny, 0, **{"synthesis.images": None, "synthesis.images_per_class": table})
    make(params)
    (picture,) = draw_grids(parse_params(params), tmp_path / "reports")
    found = cells(picture)
    assert found[0] == [True] * 16
    assert found[1:] == [[False] * 15 + [True]] * 2  # the last class has three images
