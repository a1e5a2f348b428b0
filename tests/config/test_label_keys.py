"""What needs a class of each image is refused with ``teacher.labels: none``."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.params import parse_params
from tests.conftest import Params, changed


def test_a_teacher_without_labels_has_no_classes_and_needs_no_student(unlabelled: Params) -> None:
    config = parse_params(unlabelled)
    assert (config.teacher.classes, config.teacher.class_names) == (0, None)
    assert config.objective.classification == 0
    assert config.objective.feature > 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("synthesis.min_confidence", 0.5),
        ("synthesis.confirmed", True),
        ("synthesis.soft_labels", True),
        ("synthesis.captions", "a {}"),
        ("synthesis.keep", 0.5),
        ("synthesis.objective.classification", 1.0),
        ("synthesis.objective.classification_spread", 1.0),
        ("synthesis.objective.draws", 2),
        ("synthesis.objective.ambiguity", 0.5),
        ("adaptive.rounds", 1),
        ("evaluation.data", "real.tar"),
        ("evaluation.foreign", "foreign.tar"),
    ],
)
def test_a_key_that_needs_labels_is_refused(unlabelled: Params, key: str, value: Any) -> None:
    message = f"{key} needs labels, and teacher.labels is none: leave {key} out"
    with pytest.raises(UserError, match=message):
        parse_params(changed(unlabelled, {key: value}))


def test_images_of_each_class_are_refused(unlabelled: Params) -> None:
    with pytest.raises(UserError, match=r"synthesis\.images_per_class needs labels"):
        parse_params(
            changed(unlabelled, {"synthesis.images": None, "synthesis.images_per_class": 3})
        )


def test_a_verifier_is_refused(unlabelled: Params, tiny: Params) -> None:
    with pytest.raises(UserError, match=r"evaluation\.verifier needs labels"):
        parse_params(changed(unlabelled, {"evaluation.verifier": tiny["teacher"]}))


@pytest.mark.parametrize(
    ("key", "value"), [("teacher.classes", 3), ("teacher.class_names", ["a", "b"])]
)
def test_classes_are_refused(unlabelled: Params, key: str, value: Any) -> None:
    name = key.removeprefix("teacher.")
    with pytest.raises(UserError, match=f"labels is none.*leave {name} out"):
        parse_params(changed(unlabelled, {key: value}))


def test_a_classifier_has_classes(tiny: Params) -> None:
    with pytest.raises(UserError, match="classes is 0: a classifier has 1 or more"):
        parse_params(changed(tiny, {"teacher.classes": 0, "teacher.class_names": None}))


def test_values_that_switch_a_key_off_are_allowed(unlabelled: Params) -> None:
    off = {"synthesis.keep": 1.0, "synthesis.objective.draws": 1, "synthesis.confirmed": False}
    assert parse_params(changed(unlabelled, off)).synthesis.keep == 1
