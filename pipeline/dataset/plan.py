"""The plan of a dataset: the labels, seeds and batches of every shard, known before any work."""

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
from pipeline.dataset.layout import sample_key, shard_name

Labels = NDArray[np.int16]
"""Class indices, ``[images]``. Images without labels are planned as those of one class, 0."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that are optimised together.

    Attributes:
        size: the number of images to publish.
        seed: decides the starting noise.
        candidates: the number of images to optimise, of which the ``size`` best are published.
    """

    size: int
    seed: int
    candidates: int


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The plan of one shard.

    Attributes:
        number: counts all shards of the dataset from 0.
        round: 0, or the adaptive round.
        first: the index of its first image in the dataset.
        labels: the classes of its images, in publishing order.
        batches: in the order of their images.
    """

    number: int
    round: int
    first: int
    labels: Labels
    batches: tuple[Batch, ...]

    @property
    def name(self) -> str:
        """The shard's name, such as ``000000``."""
        return shard_name(self.number)

    def key(self, prefix: str, index: int) -> str:
        """The sample key of the shard's ``index``-th image.

        Args:
            prefix: the entry ``keys`` of the shard's spec.
            index: the position of the image in the shard.
        """
        return sample_key(prefix, self.first + index)


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of all shards of a dataset.

    Attributes:
        labels: the classes of all images, in publishing order.
        bounds: of each shard its round, its first image and the end of its images.
        batch_size: the most images that are optimised together.
        keep: the share of the optimised images that is published.
        seed: the seed of the dataset.
    """

    labels: Labels
    bounds: tuple[tuple[int, int, int], ...]
    batch_size: int
    keep: float
    seed: int

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[ShardPlan]:
        return (self.shard(number) for number in range(len(self)))

    def shard(self, number: int) -> ShardPlan:
        """The plan of one shard."""
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
    """Plan the first round and every adaptive round.

    The labels repeat one seeded order of the classes. Every batch, every shard and the dataset
    therefore hold each class equally often, or once more. If ``synthesis.images_per_class`` is a
    table, the classes are spread evenly in proportion to their counts, and the counts are met
    exactly. The adaptive rounds then repeat the classes of the table in turn.

    Args:
        classes: the number of the teacher's classes; 0 plans images without labels.
    """
    table = synthesis.images_per_class
    if isinstance(table, dict):
        counts = np.array([table.get(label, 0) for label in range(classes)])
        base = int(counts.sum())
        present = np.flatnonzero(counts)
    else:
        base = synthesis.images or classes * (table or 0)
        present = np.arange(max(1, classes))
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
        # Only the last shard is smaller: if the plan grows, the full shards stay complete.
        for first in range(start, end, synthesis.shard_size):
            bounds.append((round_, first, min(end, first + synthesis.shard_size)))
    return Plan(labels, tuple(bounds), synthesis.batch_size, synthesis.keep, synthesis.seed)


def derive_seed(*parts: int) -> int:
    """A 63-bit seed from integers, such as dataset seed, round, shard and batch.

    It is the same on every machine.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def counted_images(images: int, classes: int) -> str:
    """Write what a dataset has: ``20 images of 3 classes``, ``20 images without labels``.

    Args:
        images: The number of images.
        classes: The number of classes; 0 without labels.
    """
    return f"{images} images {f'of {classes} classes' if classes else 'without labels'}"


def _interleave(counts: NDArray[np.int64]) -> Labels:
    """Spread each class evenly over all images."""
    labels = np.repeat(np.arange(len(counts)), counts)
    turns = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    return labels[np.argsort(turns, kind="stable")].astype(np.int16)


def _batches(
    images: int, batch_size: int, keep: float, seeds: tuple[int, ...]
) -> tuple[Batch, ...]:
    """Batches of nearly equal size. A small last batch would have poor BatchNorm statistics.

    A batch optimises at most ``batch_size`` candidates and publishes the share ``keep`` of them.
    """
    rounding = 1e-9  # makes 0.7 * 10 come out as 7, and 7 / 0.7 as 10
    number = -(-images // max(1, math.floor(batch_size * keep + rounding)))
    sizes = [images // number + (index < images % number) for index in range(number)]
    made = [min(batch_size, math.ceil(size / keep - rounding)) for size in sizes]
    return tuple(
        Batch(size, derive_seed(*seeds, index), candidates)
        for index, (size, candidates) in enumerate(zip(sizes, made, strict=True))
    )


def plan_of(config: Config) -> Plan:
    """The plan of the configured dataset. A process computes it once."""
    synthesis, adaptive = config.synthesis.model_dump_json(), config.adaptive.model_dump_json()
    return _cached_plan(synthesis, adaptive, config.teacher.classes)


@functools.lru_cache(maxsize=2)
def _cached_plan(synthesis: str, adaptive: str, classes: int) -> Plan:
    return make_plan(
        SynthesisConfig.model_validate_json(synthesis),
        AdaptiveConfig.model_validate_json(adaptive),
        classes,
    )
