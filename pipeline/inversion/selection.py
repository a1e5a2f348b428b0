"""Which images of a batch are published: the bad are made again, what teaches least is dropped.

All choices are made within the classes of a batch, so that each label comes out as often as it was
planned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.dataset.plan import derive_seed
from pipeline.errors import UserError
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import Inverted, invert
from pipeline.inversion.warm_start import Pool
from pipeline.objective.terms import jensen_shannon


class Flaw(IntEnum):
    """What is wrong with an image, the worst last. From ``UNSURE`` on it is never published."""

    NONE = 0
    DUPLICATE = 1
    UNCONFIRMED = 2
    UNSURE = 3
    DIVERGED = 4

    @property
    def word(self) -> str | None:
        """As it stands in the Parquet rows."""
        return self.name.lower() if self else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Which images are made again, in at most ``attempts`` attempts.

    The diverged always are; those whose label has less than ``min_confidence`` of the teacher; with
    ``confirmed`` those that it gives another label; and of two images of a shard whose
    :func:`fingerprints` have a cosine above ``max_similarity`` one.
    """

    attempts: int
    min_confidence: float = 0.0
    confirmed: bool = False
    max_similarity: float | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """The images of a batch to publish, with a :class:`Flaw` for each, int64 ``[B]``.

    ``replaced`` is that of the image whose place it took, ``flaws`` its own after the last attempt.
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
    """:func:`invert`, and again from a derived seed as long as there are too few good images.

    A new attempt makes the whole batch, whose statistics count, and only bad images are replaced,
    by better ones. ``candidates`` images are made (all are kept, if None) and ``len(labels)`` kept:
    of each class the good ones of the highest :func:`usefulness`. ``earlier`` are the pixels of the
    shard's batches before this one; ``pool`` has what images start from, if not noise alone.

    Raises:
        UserError: after the last attempt some have diverged or stay below ``min_confidence``; it
            names a class. Those that are only unconfirmed or duplicates are kept.
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
        better = _better(images, again, labels, flaws, rules, _joined(before, fingerprints(good)))
        replaced = torch.where(better, flaws, replaced)
        images = images.replaced(better, again)
    _refuse(wanted, flaws[rows], rules)
    return Kept(images.taken(rows), replaced[rows], flaws[rows])


def candidate_labels(labels: Tensor, count: int, seed: int) -> Tensor:
    """``labels`` (int64 ``[B]``) and, up to ``count``, more of them in the same order.

    Where these begin follows from ``seed``: otherwise the same classes would always have fewer
    candidates, where there are not enough for all.
    """
    spare = torch.arange(seed % len(labels), seed % len(labels) + count - len(labels))
    return torch.cat([labels, labels[spare % len(labels)]])


def choose(
    images: Inverted, labels: Tensor, wanted: Tensor, rules: Rules, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The rows to keep, one for each of ``wanted`` and of its label, and the flaws of all rows.

    Good images go first, the most useful of each class, then those of earlier attempts; flawed ones
    fill what is missing, the least flawed first. ``before`` are the :func:`fingerprints` of images
    that are kept already.
    """
    flaws, names = flaws_of(images, labels, rules), labels.tolist()
    spare = len(labels) > len(wanted)
    worth = usefulness(images).tolist() if spare else [0.0] * len(labels)
    attempts = images.attempts.tolist()
    order = sorted(range(len(labels)), key=lambda row: (-worth[row], attempts[row], row))
    places, taken = Counter(wanted.tolist()), []
    alike = _Alike(images.pixels, rules.max_similarity, before)
    for row in (row for row in order if flaws[row] == Flaw.NONE):
        if places[names[row]] and alike.to_one_kept(row):
            flaws[row] = Flaw.DUPLICATE
        elif places[names[row]]:
            places[names[row]] -= 1
            alike.keep(row)
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
    """The worst flaw that each image has by itself, int64 ``[B]``."""
    flaws = torch.zeros_like(labels)
    if rules.confirmed:
        flaws[images.logits.argmax(1) != labels] = Flaw.UNCONFIRMED
    flaws[images.confidence(labels) < rules.min_confidence] = Flaw.UNSURE
    flaws[~images.finite] = Flaw.DIVERGED
    return flaws


def usefulness(images: Inverted) -> Tensor:
    """How much an image can teach, ``[B]``: ``JS(p_T, p_S)`` where there is a student, else the
    entropy of the teacher."""
    if images.student_logits is None:
        return entropy(images.logits)
    return jensen_shannon(images.logits, images.student_logits)


def entropy(logits: Tensor) -> Tensor:
    """``-sum_k p_k log p_k`` in nats, in [0, ln K]. ``[B, K] -> [B]``."""
    log_probability = logits.log_softmax(1)
    return -(log_probability.exp() * log_probability).sum(1)


def centred(pixels: Tensor) -> Tensor:
    """uint8 ``[N, C, H, W]`` at a size of at most 8 x 8, without each image's mean, ``[N, D]``."""
    height, width = pixels.shape[2:]
    small = F.adaptive_avg_pool2d(pixels.float(), (min(height, 8), min(width, 8))).flatten(1)
    return small - small.mean(1, keepdim=True)


def fingerprints(pixels: Tensor) -> Tensor:
    """:func:`centred` at unit length, ``[N, D]``: their products are the cosines of the images."""
    return F.normalize(centred(pixels), dim=1)


def flaw_counts(flaws: Iterable[Tensor]) -> dict[str, int]:
    """How many images have which flaw, by its word; without those that have none."""
    counts = Counter(value for each in flaws for value in each.tolist() if value)
    return {Flaw(value).name.lower(): count for value, count in sorted(counts.items())}


class _Alike:
    """Whether an image of a batch is too much like one that is kept."""

    def __init__(self, pixels: Tensor, most: float | None, before: Tensor | None) -> None:
        self._most = most
        if most is not None:
            self._prints = fingerprints(pixels)
            self._kept = _joined(before, torch.zeros_like(self._prints))  # zeros are like nothing
            self._end = len(self._kept) - len(pixels)

    def to_one_kept(self, row: int) -> bool:
        if self._most is None:
            return False
        return bool((self._kept @ self._prints[row]).max() > self._most)

    def keep(self, row: int) -> None:
        if self._most is not None:
            self._kept[self._end] = self._prints[row]
            self._end += 1


def _better(
    old: Inverted, new: Inverted, labels: Tensor, flaws: Tensor, rules: Rules, kept: Tensor
) -> Tensor:
    """Which flawed images a new attempt made better, bool ``[B]``: less flawed or, where it is no
    better in that, less like one of ``kept`` or more surely of its label."""
    duplicate = flaws == Flaw.DUPLICATE
    before = torch.where(duplicate, Flaw.NONE, flaws)
    after = flaws_of(new, labels, rules)
    closer = new.confidence(labels) > old.confidence(labels)
    if bool(duplicate.any()):
        apart = _likeness(new.pixels, kept) < _likeness(old.pixels, kept)
        closer = torch.where(duplicate, apart, closer)
    return (flaws > 0) & ((after < before) | ((after == before) & closer))


def _likeness(pixels: Tensor, kept: Tensor) -> Tensor:
    return (fingerprints(pixels) @ kept.T).max(1).values


def _joined(before: Tensor | None, more: Tensor) -> Tensor:
    return more if before is None else torch.cat([before, more])


def _refuse(labels: Tensor, flaws: Tensor, rules: Rules) -> None:
    """An error where images to be published have a flaw that none may have."""
    if not bool((flaws >= Flaw.UNSURE).any()):
        return
    label = int(labels[flaws >= Flaw.UNSURE][0])
    if bool((flaws == Flaw.DIVERGED).any()):
        raise UserError(
            f"images of class {label} diverged in {rules.attempts} attempts: "
            "lower synthesis.objective.learning_rate, or set synthesis.precision to float32"
        )
    raise UserError(
        f"{int((flaws >= Flaw.UNSURE).sum())} images, the first of class {label}, stay below "
        f"synthesis.min_confidence {rules.min_confidence} after {rules.attempts} attempts: "
        "lower it, or raise synthesis.iterations or synthesis.attempts"
    )
