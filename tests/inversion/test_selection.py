from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.dataset.plan import derive_seed
from pipeline.errors import UserError
from pipeline.inversion import invert as invert_module
from pipeline.inversion import selection
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import Inverted, invert
from pipeline.inversion.selection import Flaw, Kept, Rules, candidate_labels, invert_surely
from pipeline.inversion.usefulness import usefulness
from pipeline.inversion.warm_start import Pool
from pipeline.objective.compete import jensen_shannon
from pipeline.objective.presets import Objective
from pipeline.teachers.networks import build_network
from pipeline.teachers.teacher import Teacher
from tests.conftest import Params
from tests.inversion.test_fingerprints import cosines

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


ALONE = Objective(feature=0.0, flip=False)  # no image sees the others of its batch


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, Tensor], None]], list[int]]:
    """Change the starting images of each batch. Returns the sizes of the batches so far."""

    def patched(change: Callable[[int, Tensor], None]) -> list[int]:
        real, calls = invert_module.starting_images, []

        def changed_images(*arguments: Any) -> Tensor:
            images = real(*arguments)
            change(len(calls), images)
            calls.append(len(images))
            return images

        monkeypatch.setattr(invert_module, "starting_images", changed_images)
        return calls

    return patched


def surely(
    teacher: Teacher,
    objective: Objective = ALONE,
    *,
    iterations: int = 4,
    labels: Tensor = LABELS,
    student: nn.Module | None = None,
    candidates: int | None = None,
    earlier: tuple[Tensor, ...] = (),
    attempts: int = 3,
    **rules: Any,
) -> Kept:
    with Engine(teacher, objective, student=student) as engine:
        return invert_surely(
            engine, labels, 7, iterations, Rules(attempts=attempts, **rules), candidates, earlier
        )


def once(
    teacher: Teacher,
    attempt: int = 0,
    *,
    labels: Tensor = LABELS,
    iterations: int = 4,
    student: nn.Module | None = None,
) -> Inverted:
    with Engine(teacher, ALONE, student=student) as engine:
        return invert(engine, labels, derive_seed(7, attempt) if attempt else 7, iterations)


def rival(tiny: Params) -> nn.Module:
    torch.manual_seed(5)
    network = build_network(tiny["student"]["source"], {"width": 4}, "student")
    return network.eval().requires_grad_(False)


def test_images_that_diverged_are_an_error_in_the_end(teacher: Teacher) -> None:
    objective = Objective(learning_rate=1e30, clamp=False, flip=False, l2=1.0)
    with pytest.raises(UserError, match=r"images diverged in 2 attempts"):
        surely(teacher, objective, iterations=6, attempts=2)


def test_only_bad_images_are_made_again(teacher: Teacher, starts: Any) -> None:
    def broken(call: int, images: Tensor) -> None:
        if call == 0:
            images[2] = torch.nan

    calls = starts(broken)
    kept = surely(teacher)
    assert len(calls) == 2
    assert kept.images.attempts.tolist() == [0, 0, 1, 0, 0, 0]
    assert kept.images.seeds.tolist() == [7, 7, derive_seed(7, 1), 7, 7, 7]
    assert torch.equal(kept.images.pixels[2], once(teacher, 1).pixels[2])
    assert bool(kept.images.finite.all())
    assert kept.replaced.tolist() == [0, 0, Flaw.DIVERGED, 0, 0, 0]
    assert not kept.flaws.any()


def test_images_the_teacher_doubts_are_made_again(teacher: Teacher) -> None:
    plain = once(teacher)
    bound = float(plain.confidence(LABELS).median())
    kept = surely(teacher, attempts=50, min_confidence=bound)
    assert bool((kept.images.confidence(LABELS) >= bound).all())
    sure = plain.confidence(LABELS) >= bound
    assert torch.equal(kept.images.pixels[sure], plain.pixels[sure])
    assert bool((kept.images.attempts > 0).equal(~sure))
    assert torch.equal(kept.replaced, torch.where(sure, 0, Flaw.UNSURE))
    with pytest.raises(UserError, match=r"6 images.*min_confidence 1\.0 after 2 attempts"):
        surely(teacher, attempts=2, min_confidence=1.0)


def test_unconfirmed_images_are_made_again(teacher: Teacher) -> None:
    plain = once(teacher, iterations=1)
    wrong = plain.logits.argmax(1) != LABELS
    assert 0 < int(wrong.sum()) < 6
    kept = surely(teacher, iterations=1, attempts=50, confirmed=True)
    assert torch.equal(kept.images.logits.argmax(1), LABELS)
    assert torch.equal(kept.images.pixels[~wrong], plain.pixels[~wrong])
    assert torch.equal(kept.images.attempts > 0, wrong)
    assert torch.equal(kept.replaced, torch.where(wrong, Flaw.UNCONFIRMED, 0))


def test_of_unconfirmed_images_the_best_attempt_is_kept(teacher: Teacher) -> None:
    """With a classification weight of 0 some images stay unconfirmed."""
    aimless = replace(ALONE, classification=0.0)
    labels = LABELS.repeat(4)
    kept = surely(teacher, aimless, labels=labels, confirmed=True)
    with Engine(teacher, aimless) as engine:
        tries = [
            invert(engine, labels, seed, 4) for seed in (7, derive_seed(7, 1), derive_seed(7, 2))
        ]
    confidence = torch.stack([result.confidence(labels) for result in tries])
    right = torch.stack([result.logits.argmax(1) == labels for result in tries])
    lost = ~right.any(0)
    assert 0 < int(lost.sum()) < 24
    assert torch.equal(kept.flaws, torch.where(lost, Flaw.UNCONFIRMED, 0))
    assert torch.equal(kept.images.attempts[lost], confidence.argmax(0)[lost])
    assert torch.equal(kept.images.attempts[~lost], right.int().argmax(0)[~lost])  # the first


def test_doubt_is_an_error_also_where_confirmation_is_asked_for(teacher: Teacher) -> None:
    with pytest.raises(UserError, match="min_confidence"):
        surely(teacher, iterations=1, attempts=2, confirmed=True, min_confidence=0.999)


def test_of_two_equal_images_the_later_is_made_again(teacher: Teacher, starts: Any) -> None:
    def twins(call: int, images: Tensor) -> None:
        if call == 0:
            images[4] = images[1]

    calls = starts(twins)
    double = surely(teacher)
    assert torch.equal(double.images.pixels[1], double.images.pixels[4])
    calls.clear()
    kept = surely(teacher, max_similarity=0.95)
    assert len(calls) == 2
    assert kept.images.attempts.tolist() == [0, 0, 0, 0, 1, 0]
    assert kept.replaced.tolist() == [0, 0, 0, 0, Flaw.DUPLICATE, 0]
    assert not kept.flaws.any()
    assert torch.equal(kept.images.pixels[:4], double.images.pixels[:4])
    assert float(cosines(kept.images.pixels).max()) <= 0.95


def test_an_image_that_was_good_stays_when_a_new_one_is_like_it(
    teacher: Teacher, starts: Any
) -> None:
    first: list[Tensor] = []

    def copied(call: int, images: Tensor) -> None:
        if call == 0:
            first.append(images[4].clone())
            images[1] = torch.nan
        elif call == 1:
            images[1] = first[0]

    starts(copied)
    kept = surely(teacher, replace(ALONE, jitter=0), max_similarity=0.95)
    assert kept.images.attempts.tolist() == [0, 2, 0, 0, 0, 0]
    assert kept.replaced.tolist() == [0, Flaw.DUPLICATE, 0, 0, 0, 0]


def test_images_that_stay_equal_are_kept_and_told_of(teacher: Teacher, starts: Any) -> None:
    def twins(call: int, images: Tensor) -> None:
        images[1] = images[4] = torch.linspace(-1, 1, 64).view(1, 8, 8)

    calls = starts(twins)
    kept = surely(teacher, replace(ALONE, jitter=0), max_similarity=0.95)
    assert len(calls) == 3
    assert kept.flaws.tolist() == [0, 0, 0, 0, Flaw.DUPLICATE, 0]
    assert kept.images.attempts.tolist() == [0] * 6  # no attempt was better
    assert not kept.replaced.any()


def test_an_image_like_one_of_an_earlier_batch_is_made_again(teacher: Teacher) -> None:
    first = once(teacher)
    kept = surely(teacher, earlier=(once(teacher, 5).pixels, first.pixels), max_similarity=0.95)
    assert kept.images.attempts.tolist() == [1] * 6
    assert kept.replaced.tolist() == [Flaw.DUPLICATE] * 6
    assert torch.equal(surely(teacher, earlier=(first.pixels,)).images.pixels, first.pixels)


def test_a_replaced_duplicate_never_diverged(teacher: Teacher, starts: Any) -> None:
    """A diverged image would end the run, so it must not replace a usable one."""

    def worse(call: int, images: Tensor) -> None:
        if call == 0:
            images[4] = images[1]
        else:
            images[4] = torch.nan

    starts(worse)
    kept = surely(teacher, max_similarity=0.95)
    assert kept.flaws.tolist() == [0, 0, 0, 0, Flaw.DUPLICATE, 0]
    assert kept.images.attempts.tolist() == [0] * 6


def test_candidates_continue_the_labels() -> None:
    labels = torch.tensor([2, 0, 1, 2])
    for count in range(4, 14):
        starts = set()
        for seed in range(8):
            found = candidate_labels(labels, count, seed).tolist()
            assert found[:4] == [2, 0, 1, 2] and len(found) == count
            starts.add(tuple(found[4:]))
            places = Counter((seed + extra) % 4 for extra in range(count - 4))
            assert max(places.values(), default=0) - min(places.values(), default=0) <= 1
            assert found[4:] == [int(labels[(seed + extra) % 4]) for extra in range(count - 4)]
        assert count == 4 or len(starts) > 1


@pytest.mark.parametrize("competing", [False, True])
def test_the_most_useful_of_each_class_are_kept(
    tiny: Params, teacher: Teacher, competing: bool
) -> None:
    student = rival(tiny) if competing else None
    kept = surely(teacher, candidates=15, student=student)
    labels = candidate_labels(LABELS, 15, 7)
    everything = once(teacher, labels=labels, student=student)
    if everything.student_logits is None:
        chances = everything.logits.softmax(1)
        worth = torch.special.entr(chances).sum(1)
    else:
        worth = jensen_shannon(everything.logits, everything.student_logits)
    assert torch.allclose(usefulness(everything), worth, atol=1e-6)
    for label in range(3):
        best = worth[labels == label].topk(2).values.sort().values
        found = usefulness(kept.images)[label == LABELS].sort().values
        assert torch.allclose(found, best, atol=1e-6)
        rows = [row for row in range(15) if labels[row] == label]
        rows = sorted(sorted(rows, key=lambda row: -float(worth[row]))[:2])
        assert torch.equal(kept.images.pixels[label == LABELS], everything.pixels[rows])
        assert torch.equal(kept.images.terms["tv"][label == LABELS], everything.terms["tv"][rows])
    assert (kept.images.student_logits is not None) == competing
    assert not kept.images.attempts.any()


def test_a_spare_candidate_saves_an_attempt(teacher: Teacher, starts: Any) -> None:
    def broken(call: int, images: Tensor) -> None:
        images[2] = torch.nan

    calls = starts(broken)
    kept = surely(teacher, candidates=12)
    assert calls == [12]
    assert bool(kept.images.finite.all()) and not kept.replaced.any()
    with pytest.raises(UserError, match=r"1 of \d+ images diverged"):
        surely(teacher)


def test_equal_candidates_leave_the_first(teacher: Teacher) -> None:
    """A teacher of one class has entropy 0 everywhere, so all candidates are equally useful."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval().requires_grad_(False)
    single = replace(teacher, network=network, classes=1)
    labels = torch.zeros(3, dtype=torch.int64)
    kept = surely(single, labels=labels, candidates=7, confirmed=True, max_similarity=0.95)
    plain = once(single, labels=torch.zeros(7, dtype=torch.int64))
    assert torch.equal(kept.images.pixels, plain.pixels[:3])


def test_one_image_of_two_candidates(teacher: Teacher) -> None:
    kept = surely(teacher, labels=torch.tensor([2]), candidates=2, max_similarity=0.95)
    both = once(teacher, labels=torch.tensor([2, 2]))
    best = int(usefulness(both).argmax())
    assert torch.equal(kept.images.pixels, both.pixels[best : best + 1])


def test_new_attempts_start_from_the_pool_too(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[Any] = []
    real = selection.invert

    def watched(*arguments: Any) -> Any:
        pools.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(selection, "invert", watched)
    pool = Pool(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([0]), 0.5)
    with Engine(teacher, Objective(flip=False)) as engine, pytest.raises(UserError):
        invert_surely(
            engine, torch.tensor([0, 1]), 7, 1, Rules(attempts=3, min_confidence=1.0), pool=pool
        )
    assert pools == [pool] * 3


def test_what_diverged_is_no_part_of_the_curve(teacher: Teacher, starts: Any) -> None:
    def broken(call: int, images: Tensor) -> None:
        if call == 0:
            images[2] = torch.nan

    starts(broken)
    kept = surely(teacher)
    assert all(math.isfinite(v) for p in kept.images.curve for v in p.values())
