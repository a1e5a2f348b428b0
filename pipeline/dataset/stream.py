"""Shards as a stream of batches, an epoch at a time, read and decoded ahead of their use."""

from __future__ import annotations

import os
import random
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import IO

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.dataset.plan import derive_seed
from pipeline.dataset.tar import IMAGES, Pixels, decode_image, image_part
from pipeline.errors import BadShardError, first_line
from pipeline.execution.torchrun import WHOLE, Share
from pipeline.storage import Location, open_stream

Batch = tuple[Tensor, Tensor]
Place = tuple[int, int]  # an epoch, and the number of a batch in it
AHEAD = 4  # batches that are ready or on their way
_BLOCK = 512  # of a tar


class _Image:
    """A sample as it lies in the tar, decoded when it is first needed."""

    __slots__ = ("_data", "label")

    def __init__(self, data: bytes, label: int) -> None:
        self._data: bytes | Pixels = data
        self.label = label

    def pixels(self) -> Pixels:
        data = self._data
        if isinstance(data, bytes):
            data = self._data = decode_image(data)
        return data


_Group = tuple[_Image, ...]


class ImageStream:
    """Passes over ``shards``, each in an order that only ``seed`` and the epoch's number decide.

    Shard order is shuffled, then samples in a buffer of ``shuffle``. Of every batch only ``share``
    is decoded and returned. Shards are kept in memory, decoded, as long as they hold no more than
    ``keep`` images together: such a dataset is read and decoded once.
    """

    def __init__(
        self,
        shards: Sequence[Location],
        batch_size: int,
        shuffle: int,
        seed: int,
        share: Share = WHOLE,
        keep: int = 0,
    ) -> None:
        self._shards = list(shards)
        self._batch_size, self._shuffle, self._seed = batch_size, shuffle, seed
        self._share = share
        self._room = keep
        self._kept: dict[Location, list[_Image]] = {}

    def epoch(self, number: int) -> Iterator[Batch]:
        """One pass: ``[B, C, H, W]`` uint8 and ``[B]`` int64. A last, smaller batch is left out.

        Raises:
            BadShardError: a shard is not a tar of this project.
        """
        return _ahead(self._groups(number))

    def endless(self, epoch: int, position: int) -> Iterator[tuple[Place, Batch]]:
        """Pass after pass, from the ``position``-th batch of ``epoch`` on; nothing before it is
        decoded. With each batch the place of the one after it, to go on from.

        Raises:
            BadShardError: as above, or the shards hold less than one batch.
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
                raise BadShardError("the shards hold less than one batch")
            epoch, position = epoch + 1, 0

    def _groups(self, epoch: int) -> Iterator[_Group]:
        """This process's share of each batch."""
        rng = random.Random(derive_seed(self._seed, epoch))
        order = list(self._shards)
        rng.shuffle(order)
        samples = (image for path in order for image in self._images(path))
        mixed = iter(wds.shuffle(self._shuffle, initial=self._shuffle, rng=rng)(samples))
        own = self._share.cut(self._batch_size)
        while len(group := tuple(islice(mixed, self._batch_size))) == self._batch_size:
            yield group[own]

    def _images(self, path: Location) -> Iterator[_Image]:
        if path in self._kept:
            yield from self._kept[path]
            return
        images: list[_Image] = []
        for image in _read_images(path):
            if len(images) <= self._room:
                images.append(image)
            yield image
        if len(images) <= self._room:
            self._room -= len(images)
            self._kept[path] = images


def ordered_batches(shards: Sequence[Location], batch_size: int) -> Iterator[Batch]:
    """Every sample once, in publishing order, of tars that anybody wrote; the last batch may be
    smaller.

    Raises:
        BadShardError: one is no tar, or holds a sample without an image or a class.
    """
    images = (image for path in shards for image in _any_images(path))
    while group := tuple(islice(images, batch_size)):
        try:
            yield _collate(group)
        except ValueError as error:
            raise BadShardError(f"{shards[0]}: images are of several sizes") from error


def _any_images(path: Location) -> Iterator[_Image]:
    """What ``wds.tarfile_to_samples`` does, from any place that has a location."""
    try:
        with open_stream(path) as stream:
            shard = {"url": str(path), "stream": stream}
            for sample in group_by_keys(tar_file_expander([shard])):
                image = _Image(image_part(sample), int(sample["cls"]))
                image.pixels()  # so that the error names the file
                yield image
    except KeyError as error:
        raise BadShardError(f"{path}: a sample has no part {error}") from error
    except (tarfile.TarError, ValueError) as error:
        raise BadShardError(f"{path}: {first_line(error)}") from error


def _ahead(groups: Iterator[_Group]) -> Iterator[Batch]:
    """The batches of ``groups`` in their order, made by threads while the last ones are in use.

    One thread reads; Pillow decodes outside the interpreter's lock, so several can decode.
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
    pixels = torch.from_numpy(np.stack([image.pixels() for image in images]))
    return pixels, torch.tensor([image.label for image in images])


def _read_images(path: Location) -> Iterator[_Image]:
    """Images and labels of a tar that this project wrote, a sample's members side by side.

    ``tarfile`` takes longer over a small image's three headers than its decoding takes.
    """
    labels: dict[str, int] = {}
    with open_stream(path) as file:
        for name, data in _members(file, path.name):
            key, _, extension = name.partition(".")
            if extension == "cls":
                labels[key] = int(data)
            elif extension in IMAGES:
                yield _Image(data, labels.pop(key))


def _members(file: IO[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    while (header := file.read(_BLOCK))[:1] != b"\0":
        try:
            size = int(header[124:136].rstrip(b"\0 "), 8)
        except ValueError as error:
            raise BadShardError(f"{name} is not a tar") from error
        data = file.read(-(-size // _BLOCK) * _BLOCK)
        if len(header) < _BLOCK or len(data) < size or header[156:157] != b"0":
            raise BadShardError(f"{name}: cut off, or a member is not a plain file")
        yield header[:100].rstrip(b"\0").decode(), data[:size]
