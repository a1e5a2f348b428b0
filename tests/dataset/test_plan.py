from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import pytest

from pipeline.config.adaptive import AdaptiveConfig
from pipeline.config.synthesis import SynthesisConfig
from pipeline.dataset.plan import Plan, derive_seed, make_plan

SIZES = [
    # images, classes, shard_size, batch_size, rounds, images a round
    (1, 1, 10, 2, 0, 1),
    (5, 1, 2, 2, 3, 5),
    (10, 3, 4, 3, 0, 1),
    (20, 3, 12, 6, 2, 7),
    (2, 10, 1000, 256, 0, 1),  # fewer images than classes
    (7, 10, 3, 2, 2, 4),
    (2000, 10, 250, 250, 0, 1),
    (999, 10, 100, 64, 1, 333),
    (1500, 1000, 400, 256, 1, 1001),
    (64, 1000, 64, 16, 0, 1),
    (101, 7, 100, 100, 0, 1),
    (12, 12, 12, 12, 1, 12),
    (100, 32767, 50, 7, 0, 1),
]


def plan(
    images: int,
    classes: int,
    shard_size: int,
    batch_size: int,
    rounds: int = 0,
    round_images: int = 1,
    seed: int = 0,
) -> Plan:
    synthesis = SynthesisConfig(
        images=images, shard_size=shard_size, batch_size=batch_size, seed=seed
    )
    return make_plan(synthesis, AdaptiveConfig(rounds=rounds, images=round_images), classes)


def of_table(
    table: dict[int, int] | int, classes: int, shard_size: int = 10, rounds: int = 0
) -> Plan:
    synthesis = SynthesisConfig(images_per_class=table, shard_size=shard_size, batch_size=4)
    return make_plan(synthesis, AdaptiveConfig(rounds=rounds, images=5), classes)


def is_balanced(labels: Iterable[int], classes: int) -> bool:
    counts = np.bincount(np.fromiter(labels, int), minlength=classes)
    return len(counts) == classes and int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize("size", SIZES)
def test_every_part_is_balanced(size: tuple[int, int, int, int, int, int]) -> None:
    images, classes, _, _, rounds, round_images = size
    layout = plan(*size)
    assert len(layout.labels) == images + rounds * round_images
    assert is_balanced(layout.labels, classes)
    for shard in layout:
        assert is_balanced(shard.labels, classes)
        start = 0
        for batch in shard.batches:
            assert is_balanced(shard.labels[start : start + batch.size], classes)
            start += batch.size
        assert start == len(shard.labels)


@pytest.mark.parametrize("size", SIZES)
def test_shards_and_batches_cover_everything_once(
    size: tuple[int, int, int, int, int, int],
) -> None:
    images, _, shard_size, batch_size, rounds, round_images = size
    layout = plan(*size)
    assert [shard.number for shard in layout] == list(range(len(layout)))
    assert np.concatenate([shard.labels for shard in layout]).tolist() == layout.labels.tolist()
    first = 0
    for round_ in range(rounds + 1):
        wanted = images if round_ == 0 else round_images
        shards = [layout.shard(number) for number in layout.of_round(round_)]
        assert {shard.round for shard in shards} == {round_}
        assert [len(shard.labels) for shard in shards[:-1]] == [shard_size] * (len(shards) - 1)
        assert sum(len(shard.labels) for shard in shards) == wanted
        for shard in shards:
            assert shard.first == first
            first += len(shard.labels)
    for shard in layout:
        sizes = [batch.size for batch in shard.batches]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("size", SIZES)
def test_keys_are_unique_and_in_order(size: tuple[int, int, int, int, int, int]) -> None:
    layout = plan(*size)
    keys = [shard.key("a1b2c3d4", index) for shard in layout for index in range(len(shard.labels))]
    assert keys == [f"a1b2c3d4-{number:09d}" for number in range(len(layout.labels))]
    assert [shard.name for shard in layout] == [f"{number:06d}" for number in range(len(layout))]


@pytest.mark.parametrize("size", SIZES)
def test_no_two_batches_share_a_seed(size: tuple[int, int, int, int, int, int]) -> None:
    seeds = [batch.seed for shard in plan(*size) for batch in shard.batches]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_plan_is_the_same_every_time_and_another_for_another_seed() -> None:
    def facts(seed: int) -> list[object]:
        layout = plan(40, 5, 8, 4, 1, 10, seed)
        return [(shard.labels.tolist(), shard.batches) for shard in layout]

    assert facts(0) == facts(0)
    labels, others = plan(40, 5, 8, 4, seed=0).labels, plan(40, 5, 8, 4, seed=1).labels
    assert labels.tolist() != others.tolist()
    assert not {b for s in plan(40, 5, 8, 4, seed=0) for b in s.batches} & {
        b for s in plan(40, 5, 8, 4, seed=1) for b in s.batches
    }


def test_seeds_follow_from_seed_round_shard_and_batch() -> None:
    for shard in plan(40, 5, 8, 4, 1, 10, seed=3):
        for index, batch in enumerate(shard.batches):
            assert batch.seed == derive_seed(3, shard.round, shard.number, index)


def test_derived_seeds_never_change() -> None:
    """Datasets out there were made with these."""
    assert derive_seed(0, 0, 0, 0) == 1879184629313624024
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert len({derive_seed(*parts) for parts in itertools.product(range(8), repeat=4)}) == 8**4


@pytest.mark.parametrize("images", [1, 7, 10, 25])
def test_more_rounds_leave_the_earlier_shards_as_they_are(images: int) -> None:
    few, many = (
        plan(images, 3, 4, 3, rounds=1, round_images=6),
        plan(images, 3, 4, 3, rounds=3, round_images=6),
    )
    assert len(many) > len(few)
    for before, after in zip(few, many, strict=False):
        assert before.labels.tolist() == after.labels.tolist()
        assert (before.round, before.first, before.batches) == (
            after.round,
            after.first,
            after.batches,
        )


def test_more_rounds_leave_a_table_as_it_is() -> None:
    few, many = of_table({0: 7, 2: 3}, 3), of_table({0: 7, 2: 3}, 3, rounds=2)
    assert few.labels.tolist() == many.labels[: len(few.labels)].tolist()


@pytest.mark.parametrize(
    "table",
    [
        {0: 1},
        {0: 5, 1: 5, 2: 5},
        {0: 100, 3: 1},
        {1: 3, 2: 0, 4: 17},
        {label: label for label in range(1, 40)},
    ],
)
def test_a_table_of_counts_is_met_exactly(table: dict[int, int]) -> None:
    layout = of_table(table, 50)
    assert Counter(layout.labels.tolist()) == {c: n for c, n in table.items() if n}


@pytest.mark.parametrize("table", [{0: 30, 1: 60, 2: 10}, {0: 1, 1: 1, 2: 98}])
def test_a_table_is_spread_over_the_shards_in_proportion(table: dict[int, int]) -> None:
    layout = of_table(table, 3, shard_size=20)
    for shard in layout:
        counts = Counter(shard.labels.tolist())
        for label, wanted in table.items():
            assert abs(counts[label] - wanted * len(shard.labels) / 100) <= 2


def test_one_count_for_all_classes() -> None:
    layout = of_table(4, 6)
    assert Counter(layout.labels.tolist()) == dict.fromkeys(range(6), 4)


def test_rounds_after_a_table_take_turns_over_its_classes() -> None:
    layout = of_table({0: 9, 2: 2, 3: 0}, 4, rounds=2)
    assert Counter(layout.labels[:11].tolist()) == {0: 9, 2: 2}
    added = Counter(layout.labels[11:].tolist())
    assert set(added) == {0, 2} and sum(added.values()) == 10
    assert added[0] == added[2]


@pytest.mark.parametrize("keep", [1.0, 0.9, 0.8, 0.7, 0.5, 0.34, 0.1])
@pytest.mark.parametrize("batch_size", [10, 16, 250])
@pytest.mark.parametrize("images", [1, 9, 400, 1001])
def test_candidates_leave_the_share_that_is_kept(keep: float, batch_size: int, images: int) -> None:
    synthesis = SynthesisConfig(images=images, batch_size=batch_size, keep=keep)
    for shard in make_plan(synthesis, AdaptiveConfig(), 3):
        assert sum(batch.size for batch in shard.batches) == len(shard.labels)
        for batch in shard.batches:
            assert batch.size <= batch.candidates <= batch_size
            wanted = Fraction(batch.size) / Fraction(str(keep))  # exactly, as it was written
            assert batch.candidates == math.ceil(wanted)
