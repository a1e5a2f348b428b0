from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.evaluation.signs import VIEWS, Signs, measure_signs
from pipeline.evaluation.verdict import dataset_verdict, judge
from pipeline.teachers.teacher import Teacher
from tests.conftest import Params, load, make

GOOD = Signs(
    brightness=0.45,
    contrast=0.2,
    saturated=0.01,
    confirmed=1.0,
    views=dict.fromkeys(VIEWS, 0.8),
    perturbed={"noisy weights": 0.9},
    gap=0.1,
)


def test_good_signs_are_usable_and_say_why() -> None:
    assert str(judge(GOOD)) == (
        "these images look usable: the teacher sees the class in 80% of slightly changed images; "
        "the BatchNorm statistics are close to the teacher's (gap 0.1)"
    )
    without = judge(replace(GOOD, gap=None))
    assert without.level == "usable" and "BatchNorm" not in str(without)


@pytest.mark.parametrize(
    ("sign", "doubtful", "unusable", "word"),
    [
        ("contrast", 0.05, 0.01, "one colour"),
        ("saturated", 0.6, 1.0, "black or white"),
        ("confirmed", 0.7, 0.2, "the teacher confirms only"),
        ("gap", 0.7, 3.0, "far from the teacher's"),
        ("views", dict.fromkeys(VIEWS, 0.45), dict.fromkeys(VIEWS, 0.2), "slightly changed"),
    ],
)
def test_a_bad_sign_is_named(sign: str, doubtful: object, unusable: object, word: str) -> None:
    for value, level in ((doubtful, "doubtful"), (unusable, "unusable")):
        changes: dict[str, object] = {sign: value}
        verdict = judge(replace(GOOD, **changes))  # type: ignore[arg-type]
        assert verdict.level == level
        assert len(verdict.reasons) == 1 and word in str(verdict)


def test_a_student_that_learned_little_makes_a_dataset_doubtful_at_most() -> None:
    for taught, level in (
        (0.3, "usable"),
        (0.06, "usable"),
        (0.04, "doubtful"),
        (-0.1, "doubtful"),
    ):
        verdict = judge(replace(GOOD, taught=taught))
        assert verdict.level == level
        assert ("learned little" in str(verdict)) == (level == "doubtful")


def test_the_worst_sign_decides() -> None:
    verdict = judge(replace(GOOD, contrast=0.05, gap=3.0))
    assert verdict.level == "unusable" and len(verdict.reasons) == 1


@pytest.fixture
def teacher(tiny: Params) -> Teacher:
    return load(tiny)[1]


@pytest.mark.parametrize("kind", ["black", "grey", "white", "saturated", "noise"])
def test_images_without_content_are_not_usable(teacher: Teacher, kind: str) -> None:
    """Also where the labels are the teacher's answers to them."""
    shape, generator = (60, *teacher.shape), torch.Generator().manual_seed(0)
    random = torch.rand(shape, generator=generator)
    pixels = {
        "black": torch.zeros(shape),
        "grey": torch.full(shape, 0.5),
        "white": torch.ones(shape),
        "saturated": random.round(),
        "noise": random,
    }[kind]
    pixels = (255 * pixels).round().to(torch.uint8)
    answers = teacher.network(teacher.preprocessing.normalise(pixels)).argmax(1)
    for labels in (answers, torch.arange(60) % 3):
        level = judge(measure_signs(teacher, pixels, labels)).level
        # The tiny teacher's training images are noise with a weak pattern.
        assert level == "unusable" or (kind == "noise" and level == "doubtful")


def test_a_dataset_is_judged_by_its_shards(tiny: Params) -> None:
    make(tiny)
    config, teacher = load(tiny)
    verdict = dataset_verdict(config, teacher)
    report = verdict.report()
    assert report["level"] == verdict.level and report["contrast"] > 0
    assert report["views"].keys() == VIEWS.keys()
