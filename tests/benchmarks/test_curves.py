from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.students import curves
from benchmarks.students import report as students_report
from pipeline.dataset.stream import ordered_batches
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import invert
from pipeline.objective.presets import PRESETS
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher

LABELS = torch.arange(6) % 3


def teacher() -> Teacher:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )
    one = torch.ones(1, 3, 1, 1)
    network.eval().requires_grad_(False)
    return Teacher(network, Preprocessing(one / 2, one / 4), (3, 8, 8), 3, "")


def test_one_long_run_of_the_published_recipe_passes_through_its_shorter_ones(
    tmp_path: Path,
) -> None:
    with Engine(teacher(), PRESETS["deepinversion-cifar10"]) as engine:
        curves.through(engine, LABELS, 5, {2: tmp_path / "2/000.pt", 7: tmp_path / "7/000.pt"})
        last = invert(engine, LABELS, 5, 7).pixels
    first, second = (torch.load(tmp_path / f"{mark}/000.pt")["pixels"] for mark in (2, 7))
    assert torch.equal(second, last)
    assert not torch.equal(first, second)


def test_images_of_a_mark_become_one_tar_and_a_row_of_the_grid(tmp_path: Path) -> None:
    pixels = torch.arange(4 * 3 * 8 * 8).reshape(4, 3, 8, 8).byte()
    for part in range(2):
        rows = slice(2 * part, 2 * part + 2)
        curves.keep(tmp_path / f"{part:03d}.pt", pixels[rows], LABELS[rows])
    tar = curves.pack(tmp_path)
    ((found, labels),) = ordered_batches([tar], 9)
    assert torch.equal(found, pixels) and labels.tolist() == [0, 1, 2, 0]
    curves.draw([tar, tar], tmp_path / "grid.png", columns=4)
    drawn = np.asarray(Image.open(tmp_path / "grid.png"))
    assert drawn.shape == (22, 42, 3)  # 8 pixels an image, 2 between
    assert np.array_equal(drawn[2:10, 12:20], pixels[1].permute(1, 2, 0).numpy())


def test_rows_of_one_size_are_ordered_and_measures_judged_by_them(tmp_path: Path) -> None:
    results = [
        {"row": row, "images": 8, "steps": 4, "seed": seed, "device": "cpu", "agreement": 0.5,
         "class_cosine": cos, "student_accuracy": accuracy}
        for row, seed, cos, accuracy in (
            ("a", 0, 0.9, 0.1), ("a", 1, 0.8, 0.4), ("b", 0, 0.7, 0.5), ("c", 0, 0.5, 0.6),
            ("real", 0, 0.9, 0.3), ("noise", 0, 0.1, 0.1),
        )
    ]  # fmt: skip
    other = {**results[0], "row": "other", "images": 9}
    rows = students_report.by_row(
        [*results, other, {**other, "images": 8, "device": "cuda"}], 8, 4, "cpu"
    )
    assert set(rows) == {"a", "b", "c", "real", "noise"}
    assert rows["a"]["student_accuracy"] == pytest.approx(0.25)
    assert rows["a"]["class_cosine"] == pytest.approx(0.85)
    assert rows["a"]["accuracies"] == [0.1, 0.4]
    assert set(students_report.learnt(rows)) == {"b", "c"}
    ((measure, (value, count)),) = students_report.predictions(rows).items()
    assert (measure, count) == ("class_cosine", 4)
    assert value == pytest.approx(0.2)
    lines = students_report.table(rows, [*results, other]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["`c`", "`b`"]
    assert lines[-1] == "| class_cosine | - | - | -1.00 (3) | -0.40 (6) |"
    students_report.plot([*results, other], tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size[0] > 100


def test_the_table_compares_times_with_the_longest_published_run() -> None:
    rows = [
        {"recipe": recipe, "iterations": iterations, "seconds": seconds, "student_accuracy": 0.5,
         "frechet_distance": 1.0, "verifier_agreement": 0.25}
        for recipe, iterations, seconds in (
            ("published", 200, 100.0), ("published", 2000, 1000.0), ("ours", 50, 4.0),
        )
    ]  # fmt: skip
    lines = curves.table(rows).splitlines()[2:]
    assert [line.split("|")[4].strip() for line in lines] == ["10.0x", "1.0x", "250.0x"]
    assert lines[1] == "| published | 2,000 | 1,000 | 1.0x | 50.00% | 1.00 | 25.0% |"
