from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.dataset.plan import derive_seed
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import drawn_factors, invert
from pipeline.inversion.selected_starts import select, selected_starts
from pipeline.inversion.starts import starting_images
from pipeline.objective.presets import Objective
from pipeline.teachers.teacher import Teacher

LABELS = torch.tensor([0, 1, 2, 2, 1, 0])


def logits(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities).log()


def test_the_surest_of_each_class_are_taken_in_the_order_of_the_labels() -> None:
    answers = logits([0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.8, 0.2], [0.3, 0.7])
    assert select(answers, torch.tensor([0, 1, 0])).tolist() == [1, 2, 3]


def test_a_class_that_is_never_answered_takes_what_no_other_class_needs() -> None:
    """The first row has the highest probability of class 1, but class 0 needs it."""
    answers = logits([0.55, 0.45], [0.6, 0.4], [0.99, 0.01], [0.7, 0.3])
    assert select(answers, torch.tensor([1, 0])).tolist() == [0, 2]
    assert select(answers[:2], torch.tensor([1, 0])).tolist() == [0, 1]
    assert sorted(select(answers, torch.tensor([1, 1, 0, 1])).tolist()) == [0, 1, 2, 3]


def test_of_equals_the_first_is_taken() -> None:
    assert select(torch.zeros(5, 3), torch.tensor([0, 0, 2, 1])).tolist() == [0, 1, 3, 2]


@pytest.mark.parametrize("start", ["white", "procedural"])
def test_the_teacher_is_surer_of_selected_starts(teacher: Teacher, start: str) -> None:
    def confidence(draws: int) -> Tensor:
        with Engine(teacher, Objective(start=start, draws=draws)) as engine:
            return invert(engine, LABELS.repeat(5), seed=3, iterations=0).confidence(
                LABELS.repeat(5)
            )

    one, two, many = (confidence(draws).mean() for draws in (1, 2, 20))
    assert one + 0.1 < two + 0.05 < many


@pytest.mark.parametrize("at_once", [1, 3, 4])
def test_the_starts_are_the_best_of_all_that_were_drawn(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Drawing a few at a time selects as drawing all at once does."""
    monkeypatch.setattr("pipeline.inversion.selected_starts.CHUNK", at_once * 6 * 64)
    objective = Objective(start="procedural", draws=4)
    with Engine(teacher, objective) as engine:
        generator = torch.Generator().manual_seed(derive_seed(3, 0))
        drawn = torch.cat(
            [
                starting_images(6 * number, teacher.shape, "procedural", generator)
                for number in {1: [1] * 4, 3: [3, 1], 4: [4]}[at_once]
            ]
        )
        pixels = engine.space.pixels
        answers = engine.answers(pixels.normalise(pixels.quantise(drawn)))
        assert len(answers.argmax(1).unique()) == 3
        starts = selected_starts(engine, LABELS, derive_seed(3, 0))
        torch.testing.assert_close(starts, drawn[select(answers, LABELS)])
        made = invert(engine, LABELS, seed=3, iterations=0)
        assert torch.equal(made.pixels, pixels.quantise(starts))


@pytest.mark.parametrize("draws", [1, 3])
def test_the_factors_are_drawn_again_without_the_teacher(teacher: Teacher, draws: int) -> None:
    objective = Objective(
        start="procedural", draws=draws, classification_spread=1.0, tv_spread=0.5, ambiguity=0.3
    )
    with Engine(teacher, objective) as engine:
        factors = invert(engine, LABELS, seed=5, iterations=2).terms.factors
    again = drawn_factors(objective, teacher.shape, len(LABELS), 5, 2, warm=False)
    torch.testing.assert_close(factors, again)
    assert len(factors.unique()) > 6
