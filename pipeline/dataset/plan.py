"""What will be made, before anything runs: every shard's labels and seeds."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config.adaptive import AdaptiveConfig
from pipeline.config.schema import Config
from pipeline.config.synthesis import SynthesisConfig

KEY_DIGITS = 9
Labels = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Batch:
    """``size`` images, from one seed: the best of ``candidates`` that are optimised together."""

    size: int
    seed: int
    candidates: int


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One tar: its number, its round, and the samples ``first .. first + len(labels)``."""

    number: int
    round: int
    first: int
    labels: Labels
    batches: tuple[Batch, ...]

    @property
    def name(self) -> str:
        return f"{self.number:06d}"

    def key(self, index: int) -> str:
        """The sample key of the shard's ``index``-th image."""
        return f"{self.first + index:0{KEY_DIGITS}d}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards of a dataset. Labels are in publishing order, ``[images]``."""

    labels: Labels
    bounds: tuple[tuple[int, int, int], ...]  # of each shard: round, first sample, end
    batch_size: int
    keep: float
    seed: int

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[ShardPlan]:
        return (self.shard(number) for number in range(len(self)))

    def shard(self, number: int) -> ShardPlan:
        round_, first, end = self.bounds[number]
        return ShardPlan(
            number=number,
            round=round_,
            first=first,
            labels=self.labels[first:end],
            batches=_batches(end - first, self.batch_size, self.keep, (self.seed, round_, number)),
        )

    def of_round(self, round_: int) -> range:
        """The numbers of a round's shards."""
        numbers = [number for number, bound in enumerate(self.bounds) if bound[0] == round_]
        return range(numbers[0], numbers[-1] + 1)


def make_plan(synthesis: SynthesisConfig, adaptive: AdaptiveConfig, classes: int) -> Plan:
    """Lay out the first synthesis and every adaptive round.

    Labels walk through the classes in one fixed, seeded order, over and over, so that any run of
    samples, and so each batch, each shard and the dataset, holds each class equally often or once
    more. A table of counts is interleaved in proportion instead, and met exactly; the adaptive
    rounds then take turns over the classes that the table asks for.
    """
    table = synthesis.images_per_class
    if isinstance(table, dict):
        counts = np.array([table.get(label, 0) for label in range(classes)])
        base = int(counts.sum())
        present = np.flatnonzero(counts)
    else:
        base = synthesis.images or classes * (table or 0)
        present = np.arange(classes)
    total = base + adaptive.rounds * adaptive.images
    order = np.random.default_rng(synthesis.seed).permutation(present).astype(np.int16)
    if isinstance(table, dict):
        labels = np.concatenate([_interleave(counts), np.resize(order, total - base)])
    else:
        labels = np.resize(order, total)
    bounds: list[tuple[int, int, int]] = []
    end = 0
    for round_ in range(adaptive.rounds + 1):
        start, end = end, end + (base if round_ == 0 else adaptive.images)
        # The last shard is smaller, so that a plan can grow and keep the full ones.
        for first in range(start, end, synthesis.shard_size):
            bounds.append((round_, first, min(end, first + synthesis.shard_size)))
    return Plan(labels, tuple(bounds), synthesis.batch_size, synthesis.keep, synthesis.seed)


def derive_seed(*parts: int) -> int:
    """A 63-bit seed from integers (dataset seed, round, shard, batch), the same everywhere."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _interleave(counts: NDArray[np.int64]) -> Labels:
    """Each class spread evenly over the whole, whatever its count."""
    labels = np.repeat(np.arange(len(counts)), counts)
    turns = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    return labels[np.argsort(turns, kind="stable")].astype(np.int16)


def _batches(
    images: int, batch_size: int, keep: float, seeds: tuple[int, ...]
) -> tuple[Batch, ...]:
    """Batches of nearly one size: the statistics of a small last one would mean little.

    Of ``batch_size`` candidates at most, ``keep`` of them are images.
    """
    rounding = 1e-9  # 0.7 * 10 is to be 7, and 7 / 0.7 to be 10
    number = -(-images // max(1, math.floor(batch_size * keep + rounding)))
    sizes = [images // number + (index < images % number) for index in range(number)]
    made = [min(batch_size, math.ceil(size / keep - rounding)) for size in sizes]
    return tuple(
        Batch(size, derive_seed(*seeds, index), candidates)
        for index, (size, candidates) in enumerate(zip(sizes, made, strict=True))
    )


def plan_of(config: Config) -> Plan:
    """The plan, laid out once for the many shards that one process makes."""
    synthesis, adaptive = config.synthesis.model_dump_json(), config.adaptive.model_dump_json()
    return _cached_plan(synthesis, adaptive, config.teacher.classes)


@functools.lru_cache(maxsize=2)
def _cached_plan(synthesis: str, adaptive: str, classes: int) -> Plan:
    return make_plan(
        SynthesisConfig.model_validate_json(synthesis),
        AdaptiveConfig.model_validate_json(adaptive),
        classes,
    )
