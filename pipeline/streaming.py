"""Shards as a stream of batches, an epoch at a time, never the whole dataset in memory."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from torch import Tensor

from pipeline.plan import derive_seed
from pipeline.shards import decode_image, image_part


def epoch_batches(
    shards: Sequence[Path], batch_size: int, shuffle: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over ``shards``: ``[B, C, H, W]`` uint8 and ``[B]`` int64, in an order that only
    ``seed`` and ``epoch`` decide.

    Shard order is shuffled, then samples in a buffer of ``shuffle``; shards are split over the
    nodes and the loader workers where there are several. A last, smaller batch is left out.
    """
    rng = random.Random(derive_seed(seed, epoch))
    order = [str(path) for path in shards]
    rng.shuffle(order)
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(order),
        wds.split_by_node,
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(shuffle, initial=shuffle, rng=rng),
        wds.map(_decode),
        wds.batched(batch_size, collation_fn=_collate, partial=False),
    )
    yield from pipeline


def ordered_batches(shards: Sequence[Path], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample once, in publishing order; the last batch may be smaller."""
    pipeline = wds.DataPipeline(
        wds.SimpleShardList([str(path) for path in shards]),
        wds.tarfile_to_samples(),
        wds.map(_decode),
        wds.batched(batch_size, collation_fn=_collate, partial=True),
    )
    yield from pipeline


def _decode(sample: dict[str, bytes]) -> tuple[np.ndarray, int]:
    return decode_image(image_part(sample)), int(sample["cls"])


def _collate(samples: list[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor]:
    pixels, labels = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels)
