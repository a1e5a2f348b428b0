from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import Inverted, invert, learning_rate
from pipeline.inversion.starts import starting_images
from pipeline.objective.bn_statistics import FeatureStatistics
from pipeline.objective.classification import classification_loss
from pipeline.objective.presets import Objective
from pipeline.objective.terms import TermInputs, evaluate_terms
from pipeline.teachers.networks import build_network
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher
from tests.conftest import Params

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def dream(
    teacher: Teacher,
    objective: Objective | None = None,
    *,
    seed: int = 7,
    iterations: int = 4,
    labels: Tensor = LABELS,
    student: nn.Module | None = None,
    **options: Any,
) -> Inverted:
    engine = Engine(teacher, objective or Objective(flip=False), student=student, **options)
    with engine:
        return invert(engine, labels, seed, iterations)


def rival(tiny: Params) -> nn.Module:
    """A student with its own weights, frozen like the student of a round."""
    torch.manual_seed(5)
    network = build_network(tiny["student"]["source"], {"width": 4}, "student")
    return network.eval().requires_grad_(False)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(teacher: Teacher) -> None:
    first, second, other = dream(teacher), dream(teacher), dream(teacher, seed=8)
    assert torch.equal(first.pixels, second.pixels)
    assert torch.equal(first.logits, second.logits)
    assert first.curve == second.curve
    assert not torch.equal(first.pixels, other.pixels)
    for index in range(len(LABELS)):
        assert not torch.equal(first.pixels[index], other.pixels[index])


def test_global_random_state_plays_no_part(teacher: Teacher) -> None:
    torch.manual_seed(1)
    first = dream(teacher).pixels
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(dream(teacher).pixels, first)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_images_of_a_batch_differ_from_each_other(teacher: Teacher) -> None:
    pixels = dream(teacher, labels=torch.zeros(6, dtype=torch.int64)).pixels
    assert len({image.numpy().tobytes() for image in pixels}) == 6


@pytest.mark.parametrize("clamp", [True, False])
def test_pixels_are_bytes(teacher: Teacher, clamp: bool) -> None:
    objective = Objective(learning_rate=30.0, clamp=clamp, flip=False)
    pixels = dream(teacher, objective).pixels
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (6, 1, 8, 8)
    assert (pixels.min().item(), pixels.max().item()) == (0, 255)


def test_judgement_is_of_the_published_pixels(teacher: Teacher) -> None:
    objective = Objective(l2=0.1, flip=False)
    result = dream(teacher, objective)
    images = (result.pixels.float() / 255 - 0.45) / 0.25
    shown = teacher.preprocessing.normalise(result.pixels)
    with torch.no_grad(), FeatureStatistics(teacher.network) as statistics:
        logits = teacher.network(shown)
        layers = statistics.collect()
    inputs = TermInputs(images, LABELS, logits, layers, None, objective)
    expected = evaluate_terms(inputs, torch.ones(6, 2))
    found = result.terms
    assert torch.allclose(result.logits, logits, atol=1e-5)
    for name in ("classification", "tv", "l2", "feature"):
        assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    assert "compete" not in found and result.student_logits is None
    last = result.curve[-1]
    assert last["total"] == pytest.approx(expected.total(objective).mean().item(), rel=1e-4)


def test_the_teacher_is_left_as_it_was(teacher: Teacher) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    dream(teacher)
    after = teacher.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in teacher.network.parameters())
    assert not any(module.training for module in teacher.network.modules())
    assert not any(module._forward_pre_hooks for module in teacher.network.modules())


@pytest.mark.parametrize("form", ["normalised", "published"])
def test_the_objective_goes_down(teacher: Teacher, form: Any) -> None:
    objective = Objective(feature_form=form, learning_rate=0.1, jitter=0, flip=False)
    curve = dream(teacher, objective, iterations=60).curve
    assert [point["iteration"] for point in curve] == [*range(0, 60, 3), 60]
    assert curve[-1]["total"] < 0.3 * curve[0]["total"]
    assert curve[-1]["feature"] < curve[0]["feature"]


def test_the_teacher_sees_what_it_was_asked_for(teacher: Teacher) -> None:
    result = dream(teacher, Objective(jitter=1, flip=False), iterations=60)
    assert torch.equal(result.logits.argmax(1), LABELS)
    assert not torch.equal(dream(teacher, iterations=0).logits.argmax(1), LABELS)


@pytest.mark.parametrize("weight", ["classification", "tv", "l2", "feature"])
def test_each_weight_lowers_its_own_term(teacher: Teacher, weight: str) -> None:
    off = Objective(
        classification=0, tv=0, l2=0, feature=0, learning_rate=0.1, jitter=0, flip=False
    )
    changes: dict[str, Any] = {weight: 1.0}
    curve = dream(teacher, replace(off, **changes), iterations=20).curve
    assert curve[-1][weight] < curve[0][weight]


def test_no_iteration_at_all(teacher: Teacher) -> None:
    result = dream(teacher, iterations=0)
    start = starting_images(6, (1, 8, 8), "low-frequency", torch.Generator().manual_seed(7))
    assert torch.equal(result.pixels, teacher.space().pixels.quantise(start))
    assert [point["iteration"] for point in result.curve] == [0]


def test_one_image_alone(teacher: Teacher) -> None:
    result = dream(teacher, labels=torch.tensor([2]))
    assert result.pixels.shape == (1, 1, 8, 8)
    assert all(math.isfinite(value) for point in result.curve for value in point.values())


def test_a_student_adds_the_competing_term(tiny: Params, teacher: Teacher) -> None:
    student = rival(tiny)
    result = dream(teacher, Objective(compete=10.0, flip=False), student=student)
    assert result.student_logits is not None
    assert "compete" in result.terms
    assert {"compete"} == set(result.curve[0]) - set(dream(teacher).curve[0])
    assert all(parameter.grad is None for parameter in student.parameters())


def test_competing_drives_student_and_teacher_apart(tiny: Params, teacher: Teacher) -> None:
    student = rival(tiny)
    plain = Objective(jitter=0, flip=False)
    ends = [
        dream(
            teacher,
            replace(plain, compete=weight, compete_until=1.0),
            student=student,
            iterations=40,
        ).curve[-1]["compete"]
        for weight in (0.0, 30.0)
    ]
    assert ends[1] < ends[0] - 0.02


def test_competition_ends_after_its_share_of_the_iterations(tiny: Params, teacher: Teacher) -> None:
    student, plain = rival(tiny), Objective(compete=0.0, flip=False)
    alone, never, half, always = (
        dream(teacher, replace(plain, compete=weight, compete_until=until), student=student).pixels
        for weight, until in ((0.0, 1.0), (10.0, 0.0), (10.0, 0.5), (10.0, 1.0))
    )
    assert torch.equal(alone, never)
    assert not torch.equal(alone, half)
    assert not torch.equal(half, always)


@pytest.mark.parametrize("until", [0.0, 0.5, 0.6, 1.0])
def test_the_first_iterations_compete(tiny: Params, teacher: Teacher, until: float) -> None:
    found: list[bool] = []
    objective = Objective(compete_until=until, flip=False)
    with Engine(teacher, objective, student=rival(tiny)) as engine:
        step = engine.step

        def noted(*inputs: Any) -> tuple[Tensor, Tensor]:
            found.append(inputs[3])
            return step(*inputs)

        engine.step = noted  # type: ignore[method-assign, assignment]
        invert(engine, LABELS, 7, 10)
    assert found == [iteration < 10 * until for iteration in range(10)]


def test_a_student_of_no_weight_changes_no_pixel(tiny: Params, teacher: Teacher) -> None:
    plain = Objective(compete=0.0, flip=False)
    alone, beside = dream(teacher, plain), dream(teacher, plain, student=rival(tiny))
    assert torch.equal(alone.pixels, beside.pixels)


def test_bfloat16_reaches_the_same_labels(teacher: Teacher) -> None:
    result = dream(teacher, Objective(jitter=1, flip=False), iterations=60, precision="bfloat16")
    assert torch.equal(result.logits.argmax(1), LABELS)
    assert result.logits.dtype == torch.float32
    assert not torch.equal(
        result.pixels, dream(teacher, Objective(jitter=1, flip=False), iterations=60).pixels
    )


def test_progress_is_told_of_each_iteration(teacher: Teacher) -> None:
    told: list[int] = []
    with Engine(teacher, Objective(flip=False)) as engine:
        invert(engine, LABELS, 0, 5, told.append)
    assert told == [1] * 5


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    objective = Objective(learning_rate=2.0, warmup=4, schedule="cosine")
    rates = [learning_rate(objective, iteration, 20) for iteration in range(20)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    for iteration in range(4, 20):
        expected = 2.0 * (1 + math.cos(math.pi * (iteration - 4) / 16)) / 2
        assert rates[iteration] == pytest.approx(expected, abs=1e-6)
    assert rates[12] == pytest.approx(1.0, abs=1e-6)


def test_learning_rate_of_a_constant_schedule() -> None:
    objective = Objective(learning_rate=0.05, warmup=0, schedule="constant")
    assert {learning_rate(objective, iteration, 9) for iteration in range(9)} == {0.05}


def test_a_short_run_warms_up_for_half_of_it_at_most() -> None:
    objective = Objective(learning_rate=1.0, warmup=100, schedule="constant")
    assert [learning_rate(objective, i, 5) for i in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert learning_rate(objective, 0, 1) == 1.0


def test_images_with_weights_of_their_own(teacher: Teacher) -> None:
    objective = Objective(tv_spread=3.0, flip=False, jitter=0)
    result = dream(teacher, objective)
    assert not torch.equal(result.pixels, dream(teacher, Objective(flip=False, jitter=0)).pixels)
    smoothest, roughest = result.terms.factors[:, 1].argmax(), result.terms.factors[:, 1].argmin()
    assert result.terms["tv"][smoothest] < result.terms["tv"][roughest]
    total = result.terms.total(objective)
    terms, factors = result.terms, result.terms.factors[:, 1]
    by_hand = 0.004 * factors * terms["tv"] + terms["classification"] + 10 * terms["feature"]
    torch.testing.assert_close(total, by_hand)


def test_ambiguous_targets_change_the_images_but_not_their_labels(teacher: Teacher) -> None:
    plain = dream(teacher, Objective(flip=False))
    ambiguous = dream(teacher, Objective(flip=False, ambiguity=0.8))
    assert not torch.equal(plain.pixels, ambiguous.pixels)
    assert ambiguous.confidence(LABELS).mean() < plain.confidence(LABELS).mean()
    # What is reported is the cross-entropy of the label itself.
    expected = classification_loss(ambiguous.logits, LABELS)
    torch.testing.assert_close(ambiguous.terms["classification"], expected)


def test_normalising_and_quantising_bring_every_pixel_back() -> None:
    preprocessing = Preprocessing(
        torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1),
    )
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    images = preprocessing.normalise(pixels)
    expected = (pixels[0, 1, 3, 5].item() / 255 - 0.456) / 0.224
    assert images[0, 1, 3, 5].item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(preprocessing.quantise(images), pixels)
    assert torch.allclose(preprocessing.clamp(images), images)
    wide = preprocessing.clamp(100 * torch.randn(2, 3, 4, 4))
    back = wide * preprocessing.std + preprocessing.mean
    assert np.allclose([back.min().item(), back.max().item()], [0, 1], atol=1e-6)


def test_the_curve_ends_near_what_is_judged(teacher: Teacher) -> None:
    with Engine(teacher, Objective(flip=False)) as engine:
        result = invert(engine, torch.tensor([0, 1, 2]), 7, 4)
    for name in ("classification", "tv", "l2", "feature"):
        assert result.curve[-1][name] == pytest.approx(result.terms[name].mean().item(), rel=1e-4)


def test_rows_are_taken_and_replaced_in_every_tensor(tiny: Params, teacher: Teacher) -> None:
    student = rival(tiny)
    first, other = dream(teacher, student=student), dream(teacher, student=student, seed=8)
    other.attempts.fill_(1)
    rows = torch.tensor([True, False, False, True, False, False])
    mixed, some = first.replaced(rows, other), first.taken(torch.tensor([4, 0]))

    def tensors(images: Inverted) -> dict[str, Tensor]:
        own = {field.name: getattr(images, field.name) for field in fields(images)}
        found = {name: value for name, value in own.items() if isinstance(value, Tensor)}
        return {**found, **images.terms.values, "factors": images.terms.factors}

    assert {"pixels", "logits", "factors", "tv", "compete"} <= tensors(first).keys()
    for name, value in tensors(first).items():
        theirs = tensors(other)[name]
        for row in range(6):
            expected = theirs[row] if rows[row] else value[row]
            assert torch.equal(tensors(mixed)[name][row], expected)
        assert torch.equal(tensors(some)[name], value[[4, 0]])
    assert mixed.curve == some.curve == first.curve
