"""Selects the images of a batch to publish: flawed images are made again, the rest compete.

Every choice is among images of one class of one batch, so each label is published as often as the
plan says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from pipeline.dataset.plan import derive_seed
from pipeline.errors import UserError
from pipeline.inversion.engine import Engine
from pipeline.inversion.fingerprints import Duplicates, fingerprints, joined, largest_cosine
from pipeline.inversion.invert import Inverted, invert
from pipeline.inversion.usefulness import usefulness
from pipeline.inversion.warm_start import Pool


class Flaw(IntEnum):
    """What is wrong with an image, from the least to the worst.

    An image that is ``UNSURE`` or worse is never published. ``DUPLICATE``: too similar to another
    image. ``UNCONFIRMED``: the teacher predicts another class. ``UNSURE``: the teacher's
    probability of the label is too low. ``DIVERGED``: the optimisation gave NaN or infinity.
    """

    NONE = 0
    DUPLICATE = 1
    UNCONFIRMED = 2
    UNSURE = 3
    DIVERGED = 4

    @property
    def word(self) -> str | None:
        """The flaw's name in the Parquet rows; None for ``NONE``."""
        return self.name.lower() if self else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The rules by which an image is flawed and is made again. A diverged image always is.

    Attributes:
        attempts: The largest number of attempts at a batch, at least 1.
        min_confidence: The least teacher's probability of an image's label, in [0, 1].
        confirmed: Whether the teacher must predict the label of each image.
        max_similarity: The largest cosine of the :func:`fingerprints` of two images of a shard, in
            (0, 1). None allows all.
    """

    attempts: int
    min_confidence: float = 0.0
    confirmed: bool = False
    max_similarity: float | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """The images of a batch to publish.

    Attributes:
        images: The images, B of them.
        replaced: int64 ``[B]``. The :class:`Flaw` of the image that this one replaced.
        flaws: int64 ``[B]``. The :class:`Flaw` of this image after the last attempt.
    """

    images: Inverted
    replaced: Tensor
    flaws: Tensor


def invert_surely(
    engine: Engine,
    labels: Tensor,
    seed: int,
    iterations: int,
    rules: Rules,
    candidates: int | None = None,
    earlier: Sequence[Tensor] = (),
    progress: Callable[[int], None] | None = None,
    pool: Pool | None = None,
) -> Kept:
    """Run :func:`invert`, and again with derived seeds while there are too few good images.

    A new attempt makes the whole batch, because its statistics are those of the whole batch. It
    replaces only flawed images, and only by better ones.

    Args:
        engine: Teacher, student and objective, inside its ``with`` block.
        labels: The classes of the images to publish, int64 ``[B]``, on the CPU.
        seed: The seed of the first attempt.
        iterations: The number of gradient steps.
        rules: What counts as a flaw, and the number of attempts.
        candidates: The number of images to make, at least B. Of each class the good images of the
            highest :func:`usefulness` are kept. None makes B images and keeps all.
        earlier: The pixels of the earlier batches of the shard, to find duplicates of them.
        progress: Called with 1 after each iteration of the first attempt.
        pool: Earlier images that the batch starts from. None starts it from noise alone.

    Returns:
        The images to publish, in the order of ``labels``. Some may still be unconfirmed or
        duplicates.

    Raises:
        UserError: After the last attempt an image has diverged or is below ``min_confidence``.
    """
    wanted, labels = labels, candidate_labels(labels, candidates or len(labels), seed)
    images = invert(engine, labels, seed, iterations, progress, pool)
    replaced = torch.zeros_like(labels)
    before = fingerprints(torch.cat(list(earlier))) if rules.max_similarity and earlier else None
    for attempt in range(1, rules.attempts + 1):
        rows, flaws = choose(images, labels, wanted, rules, before)
        if attempt == rules.attempts or not bool(flaws[rows].any()):
            break
        again = invert(engine, labels, derive_seed(seed, attempt), iterations, None, pool)
        again.attempts.fill_(attempt)
        good = images.pixels[rows[flaws[rows] == Flaw.NONE]]
        better = _better(images, again, labels, flaws, rules, joined(before, fingerprints(good)))
        replaced = torch.where(better, flaws, replaced)
        images = images.replaced(better, again)
    _refuse(wanted, flaws[rows], rules)
    return Kept(images.taken(rows), replaced[rows], flaws[rows])


def candidate_labels(labels: Tensor, count: int, seed: int) -> Tensor:
    """Repeat ``labels`` (int64 ``[B]``) until there are ``count`` of them.

    The first B are ``labels``. The repetition starts at a place that depends on ``seed``. Otherwise
    the same classes would always have fewer candidates if ``count`` is no multiple of B.
    """
    spare = torch.arange(seed % len(labels), seed % len(labels) + count - len(labels))
    return torch.cat([labels, labels[spare % len(labels)]])


def choose(
    images: Inverted, labels: Tensor, wanted: Tensor, rules: Rules, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Choose one image for each wanted label.

    Good images come first: the most useful of each class, and among equals those of the earliest
    attempt. Flawed images fill the remaining places, the least flawed first.

    Args:
        images: All candidates, N of them.
        labels: The class of each candidate, int64 ``[N]``.
        wanted: The classes to publish, int64 ``[B]``.
        rules: What counts as a flaw.
        before: The :func:`fingerprints` of images that were kept earlier, or None.

    Returns:
        The rows to keep, int64 ``[B]``, in the order of ``wanted``, and the :class:`Flaw` of every
        candidate, int64 ``[N]``.
    """
    flaws, names = flaws_of(images, labels, rules), labels.tolist()
    spare = len(labels) > len(wanted)
    worth = usefulness(images).tolist() if spare else [0.0] * len(labels)
    attempts = images.attempts.tolist()
    order = sorted(range(len(labels)), key=lambda row: (-worth[row], attempts[row], row))
    places, taken = Counter(wanted.tolist()), []
    duplicates = Duplicates(images.pixels, rules.max_similarity, before)
    for row in (row for row in order if flaws[row] == Flaw.NONE):
        if places[names[row]] and duplicates.is_duplicate(row):
            flaws[row] = Flaw.DUPLICATE
        elif places[names[row]]:
            places[names[row]] -= 1
            duplicates.keep(row)
            taken.append(row)
    for row in sorted(order, key=lambda row: int(flaws[row])):
        if flaws[row] and places[names[row]]:
            places[names[row]] -= 1
            taken.append(row)
    of_label: dict[int, Iterator[int]] = {
        label: iter(sorted(row for row in taken if names[row] == label)) for label in places
    }
    return torch.tensor([next(of_label[label]) for label in wanted.tolist()]), flaws


def flaws_of(images: Inverted, labels: Tensor, rules: Rules) -> Tensor:
    """The worst :class:`Flaw` of each image, int64 ``[B]``. It does not look for duplicates."""
    flaws = torch.zeros_like(labels)
    if rules.confirmed:
        flaws[images.logits.argmax(1) != labels] = Flaw.UNCONFIRMED
    flaws[images.confidence(labels) < rules.min_confidence] = Flaw.UNSURE
    flaws[~images.finite] = Flaw.DIVERGED
    return flaws


def flaw_counts(flaws: Iterable[Tensor]) -> dict[str, int]:
    """The number of images with each flaw, by the flaw's name. Images without a flaw do not count.

    Args:
        flaws: One tensor of :class:`Flaw` values for each batch.
    """
    counts = Counter(value for each in flaws for value in each.tolist() if value)
    return {Flaw(value).name.lower(): count for value, count in sorted(counts.items())}


def _better(
    old: Inverted, new: Inverted, labels: Tensor, flaws: Tensor, rules: Rules, kept: Tensor
) -> Tensor:
    """The flawed images that a new attempt improved, bool ``[B]``.

    A new image is better if its flaw is less bad. If the flaws are equal, a duplicate must be less
    similar to the ``kept`` fingerprints, and any other image must have a higher confidence.
    """
    duplicate = flaws == Flaw.DUPLICATE
    before = torch.where(duplicate, Flaw.NONE, flaws)
    after = flaws_of(new, labels, rules)
    closer = new.confidence(labels) > old.confidence(labels)
    if bool(duplicate.any()):
        apart = largest_cosine(new.pixels, kept) < largest_cosine(old.pixels, kept)
        closer = torch.where(duplicate, apart, closer)
    return (flaws > 0) & ((after < before) | ((after == before) & closer))


def _refuse(labels: Tensor, flaws: Tensor, rules: Rules) -> None:
    """Raise if an image that would be published is unsure or has diverged."""
    if not bool((flaws >= Flaw.UNSURE).any()):
        return
    if diverged := int((flaws == Flaw.DIVERGED).sum()):
        raise UserError(
            f"{diverged} of {len(flaws)} images diverged in {rules.attempts} attempts: "
            "lower synthesis.objective.learning_rate, or set synthesis.precision to float32"
        )
    label = int(labels[flaws >= Flaw.UNSURE][0])
    raise UserError(
        f"{int((flaws >= Flaw.UNSURE).sum())} images, the first of class {label}, stay below "
        f"synthesis.min_confidence {rules.min_confidence} after {rules.attempts} attempts: "
        "lower min_confidence, or raise synthesis.iterations or synthesis.attempts"
    )
