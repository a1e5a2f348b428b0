"""The reports that a page reads back."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.reports.page.saved import read_saved

REAL, SYNTHETIC = "confusion.csv", "confusion_synthetic.csv"


@pytest.mark.parametrize(
    ("written", "evaluated", "judged", "images"),
    [
        ((REAL, SYNTHETIC), True, "real", 3),
        ((REAL, SYNTHETIC), False, "synthetic", 5),  # of an earlier setting
        ((SYNTHETIC,), True, "synthetic", 5),
    ],
)
def test_the_confusion_is_about_real_images_where_there_are_some(
    tmp_path: Path, written: tuple[str, ...], evaluated: bool, judged: str, images: int
) -> None:
    for name in written:
        count = 3 if name == REAL else 5
        (tmp_path / name).write_text(f"model,label,predicted,images\nteacher,0,1,{count}\n")
    saved = read_saved(tmp_path, evaluated)
    assert saved.judged == judged
    assert saved.confusion == {"teacher": {(0, 1): images}}
