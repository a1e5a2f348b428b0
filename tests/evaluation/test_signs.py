from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.evaluation.signs import VIEWS, images_to_see, measure_signs, sample_rows
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import invert
from pipeline.objective.presets import PRESETS
from pipeline.teachers.teacher import Teacher
from tests.conftest import Params, load

LABELS = torch.arange(12) % 3


@pytest.fixture
def teacher(tiny: Params) -> Teacher:
    return load(tiny)[1]


def inverted(teacher: Teacher) -> Tensor:
    with Engine(teacher, PRESETS["normalised"]) as engine:
        return invert(engine, LABELS, seed=0, iterations=60).pixels


def test_inverted_images_keep_their_labels_and_have_contrast(teacher: Teacher) -> None:
    signs = measure_signs(teacher, inverted(teacher), LABELS)
    assert signs.confirmed > 0.8
    assert 0.1 < signs.contrast < 0.5 and 0.2 < signs.brightness < 0.8
    assert signs.views.keys() == VIEWS.keys()
    assert signs.gap is not None and signs.gap < 1


def test_images_without_content_show_it(teacher: Teacher) -> None:
    shape = (12, *teacher.shape)
    made = measure_signs(teacher, inverted(teacher), LABELS)
    for value, brightness in ((0, 0.0), (128, 0.502), (255, 1.0)):
        flat = torch.full(shape, value, dtype=torch.uint8)
        signs = measure_signs(teacher, flat, LABELS)
        assert signs.contrast == 0 and abs(signs.brightness - brightness) < 1e-3
        assert signs.saturated == (value != 128)
        assert signs.confirmed < 0.5
        assert made.gap is not None and signs.gap is not None and signs.gap > 5 * made.gap


def test_noise_that_the_teacher_alone_recognises_loses_its_label(teacher: Teacher) -> None:
    """Few weak pixels change the teacher's answer; a blur removes them."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(118, 138, (12, *teacher.shape), generator=generator, dtype=torch.uint8)
    labels = teacher.network(teacher.preprocessing.normalise(pixels)).argmax(1)
    signs = measure_signs(teacher, pixels, labels)
    assert signs.confirmed == 1
    assert signs.contrast < 0.05


def test_fewer_large_images_are_looked_at(teacher: Teacher) -> None:
    """They cost time and memory in the process of the command, after the work is done."""
    assert images_to_see(teacher) == 512
    assert images_to_see(replace(teacher, shape=(3, 224, 224))) == 83
    assert images_to_see(replace(teacher, shape=(3, 4000, 4000))) == 2


def test_the_teacher_stays_as_it_is_and_the_signs_are_the_same_again(teacher: Teacher) -> None:
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    pixels = inverted(teacher)
    assert measure_signs(teacher, pixels, LABELS) == measure_signs(teacher, pixels, LABELS)
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(value, before[name])


def test_sampled_rows_have_all_classes_whatever_their_order() -> None:
    labels = torch.arange(10_240) % 10
    rows = sample_rows(len(labels), 512)
    assert len(rows.unique()) == 512 and torch.equal(rows, rows.sort().values)
    assert labels[rows].bincount().min() > 30
    assert torch.equal(rows, sample_rows(len(labels), 512))
    assert sample_rows(5, 7).tolist() == [0, 1, 2, 3, 4]
