"""Read shards as batches of images and labels: shuffled for training, or in publishing order."""

from __future__ import annotations

import os
import random
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.dataset.layout import CLASS
from pipeline.dataset.plan import derive_seed
from pipeline.dataset.tar import MOST_CLASSES, Pixels, decode_image, image_part, parse_tar
from pipeline.errors import BadShardError, first_line
from pipeline.execution.torchrun import WHOLE, Share
from pipeline.storage import Location, open_stream

Batch = tuple[Tensor, Tensor]
"""Pixels, uint8 ``[B, C, H, W]``, and labels, int64 ``[B]``, all ``NO_LABEL`` without labels."""
NO_LABEL = -1
Place = tuple[int, int]
"""The number of an epoch, and of a batch in it."""
AHEAD = 4  # batches that are decoded, or being decoded, before they are needed


class _Image:
    """An image as the tar holds it. It is decoded when it is first needed."""

    __slots__ = ("_data", "_name", "label")

    def __init__(self, parts: dict[str, bytes], name: str, labelled: bool) -> None:
        try:
            self._data: bytes | Pixels = image_part(parts)
            self.label = int(parts[CLASS]) if labelled else NO_LABEL
        except KeyError as error:
            raise BadShardError(f"{name} has no part {error}") from error
        except ValueError as error:
            raise BadShardError(f"{name}: {first_line(error)}") from error
        if labelled and not 0 <= self.label <= MOST_CLASSES:
            raise BadShardError(f"{name} has no class index from 0 to {MOST_CLASSES}")
        self._name = name

    def pixels(self) -> Pixels:
        data = self._data
        if isinstance(data, bytes):
            try:
                data = self._data = decode_image(data)
            except ValueError as error:
                raise BadShardError(f"{self._name}: {first_line(error)}") from error
        return data


_Group = tuple[_Image, ...]


class ImageStream:
    """Endless shuffled batches of shards of this project.

    The order of the shards is shuffled, and then their samples in a buffer. The seed and the number
    of the epoch alone decide the order.

    Args:
        shards: the tars.
        batch_size: images in a batch, of all processes together.
        shuffle: samples in the buffer.
        seed: decides the order, together with the number of the epoch.
        share: the part of every batch that this process decodes and returns.
        keep: the most images to keep in memory, decoded. A dataset with no more images is read and
            decoded once.
        labelled: whether the images have labels.
    """

    def __init__(
        self,
        shards: Sequence[Location],
        batch_size: int,
        shuffle: int,
        seed: int,
        share: Share = WHOLE,
        keep: int = 0,
        labelled: bool = True,
    ) -> None:
        self._shards = list(shards)
        self._batch_size, self._shuffle, self._seed = batch_size, shuffle, seed
        self._share, self._labelled = share, labelled
        self._room = keep
        self._kept: dict[Location, list[_Image]] = {}

    def epoch(self, number: int) -> Iterator[Batch]:
        """One pass over all images. A last, smaller batch is left out.

        Raises:
            BadShardError: a shard is not a tar of this project.
        """
        return _ahead(self._groups(number))

    def endless(self, epoch: int, position: int) -> Iterator[tuple[Place, Batch]]:
        """Epoch after epoch, starting at batch ``position`` of ``epoch``.

        Images before that batch are read but not decoded.

        Yields:
            The place of the next batch, where another stream could continue, and a batch.

        Raises:
            BadShardError: a shard is not a tar of this project, or all shards together hold less
                than one batch.
        """
        places: deque[Place] = deque()
        for batch in _ahead(self._endless_groups(epoch, position, places)):
            yield places.popleft(), batch

    def _endless_groups(self, epoch: int, position: int, places: deque[Place]) -> Iterator[_Group]:
        while True:
            number = -1
            for number, group in enumerate(self._groups(epoch)):
                if number >= position:
                    places.append((epoch, number + 1))
                    yield group
            if number < 0:
                raise BadShardError(
                    f"the shards hold fewer images than one batch of {self._batch_size}"
                )
            epoch, position = epoch + 1, 0

    def _groups(self, epoch: int) -> Iterator[_Group]:
        """The share of this process of each batch, not decoded."""
        rng = random.Random(derive_seed(self._seed, epoch))
        order = list(self._shards)
        rng.shuffle(order)
        samples = (image for path in order for image in self._images(path))
        mixed = iter(wds.shuffle(self._shuffle, initial=self._shuffle, rng=rng)(samples))
        own = self._share.cut(self._batch_size)
        while len(group := tuple(islice(mixed, self._batch_size))) == self._batch_size:
            yield group[own]

    def _images(self, path: Location) -> Iterator[_Image]:
        """The images of a shard, from memory if an earlier epoch kept them there."""
        if path in self._kept:
            yield from self._kept[path]
            return
        images: list[_Image] = []
        for image in _shard_images(path, self._labelled):
            if len(images) <= self._room:
                images.append(image)
            yield image
        if len(images) <= self._room:
            self._room -= len(images)
            self._kept[path] = images


def shard_batches(
    shards: Sequence[Location], batch_size: int, labelled: bool = True
) -> Iterator[Batch]:
    """Every sample of shards of this project once, in publishing order.

    The last batch may be smaller. Without labels every label is ``NO_LABEL``.

    Raises:
        BadShardError: a shard is not a tar of this project.
    """
    return _ordered(partial(_shard_images, labelled=labelled), shards, batch_size)


def ordered_batches(
    tars: Sequence[Location], batch_size: int, labelled: bool = True
) -> Iterator[Batch]:
    """Every sample once, in the order of the files. Any program may have written the tars.

    The last batch may be smaller. Without labels every label is ``NO_LABEL``.

    Raises:
        BadShardError: a file is no tar, or a sample has no image or no class.
    """
    return _ordered(partial(_foreign_images, labelled=labelled), tars, batch_size)


def _ordered(
    read: Callable[[Location], Iterator[_Image]], tars: Sequence[Location], batch_size: int
) -> Iterator[Batch]:
    images = (image for path in tars for image in read(path))
    while group := tuple(islice(images, batch_size)):
        yield _collate(group)


def _shard_images(path: Location, labelled: bool) -> Iterator[_Image]:
    """The images of a shard of this project, by its own fast parser."""
    with open_stream(path) as file:
        for key, parts, _ in parse_tar(path.name, file):
            yield _Image(parts, f"{path.name}: sample {key}", labelled)


def _foreign_images(path: Location, labelled: bool) -> Iterator[_Image]:
    """The images of a tar that any program wrote, by WebDataset's parser."""
    try:
        with open_stream(path) as stream:
            shard = {"url": str(path), "stream": stream}
            for sample in group_by_keys(tar_file_expander([shard])):
                yield _Image(sample, f"{path}: sample {sample['__key__']}", labelled)
    except (tarfile.TarError, ValueError) as error:
        raise BadShardError(f"{path}: {first_line(error)}") from error


def _ahead(groups: Iterator[_Group]) -> Iterator[Batch]:
    """The batches of ``groups`` in their order, decoded by threads while earlier ones are in use.

    One thread reads the tars. Several decode: Pillow releases the interpreter's lock.
    """
    decoders = ThreadPoolExecutor(min(AHEAD, os.cpu_count() or 1), "decode")
    reader = ThreadPoolExecutor(1, "read")

    def begin() -> Future[Batch] | None:
        group = next(groups, None)
        return None if group is None else decoders.submit(_collate, group)

    window = deque(reader.submit(begin) for _ in range(AHEAD))
    try:
        while (batch := window.popleft().result()) is not None:
            window.append(reader.submit(begin))
            yield batch.result()
    finally:
        reader.shutdown(cancel_futures=True)
        decoders.shutdown(cancel_futures=True)


def _collate(images: Sequence[_Image]) -> Batch:
    decoded = [image.pixels() for image in images]
    if len(shapes := {array.shape for array in decoded}) > 1:
        raise BadShardError(
            f"the images have different shapes {sorted(shapes)}: they cannot be one batch"
        )
    pixels = torch.from_numpy(np.stack(decoded))
    return pixels, torch.tensor([image.label for image in images], device="cpu")
