"""Draw the factors of each image again, from the seed of its batch."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.inversion.invert import drawn_factors
from pipeline.inversion.selection import candidate_labels
from pipeline.objective.terms import TERMS, factor_names
from pipeline.stages.row_problems import ShardContent, seed_of
from pipeline.synthesis.spec import round_objective

TOLERANCE = 1e-5  # relative: processors round the exponential differently


def row_factors(content: ShardContent) -> Tensor:
    """The factors that the rows hold, float32 ``[B, F]``."""
    names = [f"factor_{name}" for name in factor_names()]
    return torch.tensor([[row[name] for name in names] for row in content.rows])


def factor_problems(content: ShardContent) -> Iterator[str]:
    """The first image whose factors are not among those that the seed of its batch gives.

    Where more candidates were made than images were published, an image may be any candidate of
    its class.
    """
    objective, config = round_objective(content.config, content.shard.round), content.config
    spread = any(getattr(objective, term.spread) for term in TERMS if term.spread is not None)
    shape = config.teacher.input
    warm = bool(content.shard.round and config.adaptive.warm)

    @functools.cache
    def drawn(seed: int, count: int) -> Tensor:
        if not spread:
            return torch.ones(count, len(factor_names()))
        sides = (shape.channels, shape.height, shape.width)
        return drawn_factors(objective, sides, count, seed, config.iterations, warm)

    found, place = row_factors(content), 0
    for batch in content.batches:
        labels = torch.from_numpy(content.shard.labels[place : place + batch.size].astype("int64"))
        made = candidate_labels(labels, batch.candidates, batch.seed)
        for index, row in enumerate(content.rows[place : place + batch.size]):
            factors = drawn(seed_of(batch, row["attempt"]), batch.candidates)
            same = torch.isclose(factors, found[place + index], rtol=TOLERANCE, atol=0.0).all(1)
            possible = (made == labels[index]) if len(made) > len(labels) else _only(index, same)
            if not bool((same & possible).any()):
                yield f"sample {row['key']}: its factors are not those that its seed gives"
                return
        place += batch.size


def _only(index: int, like: Tensor) -> Tensor:
    chosen = torch.zeros_like(like)
    chosen[index] = True
    return chosen
