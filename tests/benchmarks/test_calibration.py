from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.calibration import rows
from benchmarks.calibration.rows import Study, noise, parse_bits
from pipeline.consumers.images import CalibrationImages
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher

ONES = torch.ones(1, 1, 1, 1)


def images(value: int) -> CalibrationImages:
    pixels = np.full((4, 1, 2, 2), value, np.uint8)
    return CalibrationImages(pixels, Preprocessing(ONES, ONES))


def test_rows_are_kept_and_a_tool_that_refuses_has_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def tool(teacher, folder, given, bits):  # type: ignore[no-untyped-def]
        calls.append(bits)
        if bits == (4, 8):
            raise ValueError("only 8 bits")
        right = int(given.pixels[0, 0, 0, 0])
        return lambda tested: np.array([1] * right + [0] * (4 - right))

    monkeypatch.setattr(rows, "TOOLS", {"tool": tool})
    network = Teacher(torch.nn.Identity(), Preprocessing(ONES, ONES), (1, 2, 2), 2, "0")
    sources = {
        "real": lambda seed: images(3),
        "synthetic": lambda seed: images(4 - seed),
        "noise": lambda seed: images(1),
    }
    study = Study(
        teacher=network, out=tmp_path, sources=sources, tested=images(0), expected=np.ones(4, int)
    )
    widths = [parse_bits("W8A4"), parse_bits("W4A8")]
    assert widths == [(8, 4), (4, 8)]
    study.measure(["tool"], widths, [0, 1])
    table = list(study.table(["tool"], widths, [0, 1]))
    assert "87.50 (75.00 to 100.00, 2 seeds)" in table[2]
    assert table[2].endswith("| +12.50 | -50.00 |")
    assert table[3] == "| tool | W4A8 | - | - | - | - | - |"
    measured = len(calls)
    study.measure(["tool"], widths[:1], [0, 1])
    assert len(calls) == measured


def test_noise_has_a_seed() -> None:
    like = dataclasses.replace(images(0), batch=3)
    first, again, other = (noise(like, seed).pixels for seed in (0, 0, 1))
    assert first.shape == like.pixels.shape
    assert np.array_equal(first, again) and not np.array_equal(first, other)
