"""The dataset as a Python object: its plan, shards, records, images and files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from operator import index
from pathlib import Path
from typing import SupportsIndex

from upath import UPath

from pipeline.config.adaptive import AdaptiveConfig
from pipeline.config.schema import Config
from pipeline.config.synthesis import SynthesisConfig
from pipeline.dataset.layout import PROVENANCE, Layout, index_names, shard_name
from pipeline.dataset.plan import Plan, counted_images, make_plan, plan_of
from pipeline.dataset.record_files import records_of
from pipeline.dataset.records import ShardRecord
from pipeline.dataset.stream import Batch, ImageStream, shard_batches
from pipeline.errors import UserError
from pipeline.storage import Location, digest_json, location, read_many


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of a dataset.

    Attributes:
        number: counts all shards of the dataset from 0.
        round: 0, or the adaptive round.
        images: the number of its images.
        path: its tar.
    """

    number: int
    round: int
    images: int
    path: Location

    @property
    def name(self) -> str:
        """The name of the shard, without folder and extension."""
        return shard_name(self.number)


@dataclass(frozen=True, slots=True)
class DatasetPaths:
    """The files of a dataset, for other programs to read.

    Attributes:
        tars: one for each shard.
        rows: the Parquet files, one for each shard.
        records: one for each shard.
        index_files: the card, the indexes and the provenance.
    """

    tars: tuple[Location, ...]
    rows: tuple[Location, ...]
    records: tuple[Location, ...]
    index_files: tuple[Location, ...]


class Dataset:
    """A finished dataset, opened from its folder or URL alone.

    Args:
        path: the folder, or a URL such as ``s3://bucket/prefix``.

    Attributes:
        root: the folder of the dataset.
        plan: the labels, seeds and batches of all shards.
        classes: the number of classes; 0 for a dataset without labels.
        class_names: their names, or None where the teacher has none.

    Raises:
        UserError: there is no finished dataset at ``path``, or another version wrote it.

    Example:
        >>> from pipeline.dataset.dataset import Dataset
        >>> dataset = Dataset("data/synthetic")
        >>> for pixels, labels in dataset.stream(batch_size=8, epochs=1):
        ...     pass  # uint8 [8, C, H, W] and int64 [8]
        >>> [shard.name for shard in dataset.shards(round=0)][0]
        '000000'
        >>> len(dataset) == sum(dataset.record(shard.number).images for shard in dataset.shards())
        True
    """

    def __init__(self, path: str | os.PathLike[str] | UPath) -> None:
        if not isinstance(path, str | os.PathLike | UPath):
            raise UserError(f"path is {path!r:.60}: name the folder or the URL of a dataset")
        root = path if isinstance(path, Path | UPath) else location(os.fspath(path))
        self._set(root, *_read_provenance(root))

    @classmethod
    def planned(cls, config: Config) -> Dataset:
        """The dataset that ``config`` describes, which may not be finished."""
        dataset = cls.__new__(cls)
        root, teacher = location(config.paths.dataset), config.teacher
        captions = config.synthesis.captions is not None
        dataset._set(root, plan_of(config), teacher.classes, teacher.class_names, captions)
        return dataset

    def _set(
        self,
        root: Location,
        plan: Plan,
        classes: int,
        names: tuple[str, ...] | None,
        captions: bool,
    ) -> None:
        self.root, self.plan = root, plan
        self.classes, self.class_names, self._captions = classes, names, captions
        self._layout = Layout(root)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.plan.labels)

    def __repr__(self) -> str:
        return (
            f"Dataset({str(self.root)!r}: {counted_images(len(self), self.classes)} "
            f"in {len(self.plan)} shards)"
        )

    def shards(self, round: int | None = None) -> list[Shard]:
        """All shards in publishing order, or those of one round.

        Args:
            round: 0 for the first round, or the number of an adaptive round.
        """
        return [
            Shard(number, of_round, end - first, self._layout.tar(number))
            for number, (of_round, first, end) in enumerate(self.plan.bounds)
            if round in (None, of_round)
        ]

    def record(self, number: int) -> ShardRecord:
        """The record of a shard: its spec, digests, counts and loss curve.

        Raises:
            UserError: the dataset has no such shard, or its record is missing or was changed.
        """
        if not 0 <= whole_number("number", number, least=None) < len(self.plan):
            raise UserError(
                f"{self.root} has no shard {number}: its shards are 0 to {len(self.plan) - 1}"
            )
        ((_, record, _),) = records_of(self.root, [number])
        return self._present(number, record)

    def records(self) -> Iterator[ShardRecord]:
        """The records of all shards that have one, one at a time."""
        for _, record, _ in records_of(self.root, range(len(self.plan))):
            if record is not None:
                yield record

    def tars(self, numbers: Iterable[int]) -> tuple[Location, ...]:
        """The tars of some shards, in the order of ``numbers``."""
        return self._layout.tars(numbers)

    def digest(self, numbers: Iterable[int]) -> str:
        """A digest of the tars of some shards, from their records.

        Raises:
            UserError: the record of a shard is missing or was changed.
        """
        found = records_of(self.root, numbers)
        return digest_json(
            [self._present(number, record).tar["sha256"] for number, record, _ in found]
        )

    def stream(
        self,
        batch_size: int,
        shuffle: int = 2000,
        seed: int = 0,
        epochs: int | None = None,
        keep: int = 0,
    ) -> Iterator[Batch]:
        """Shuffled batches of pixels and labels, read and decoded ahead of their use.

        The last batch of an epoch is left out if it is smaller.

        Args:
            batch_size: images in a batch.
            shuffle: images in the buffer that is shuffled; 0 shuffles the shards alone.
            seed: decides the order, together with the number of the epoch.
            epochs: passes over the dataset; None for an endless stream.
            keep: the most images to keep in memory, decoded. With ``len(dataset)`` the tars are
                read once.

        Yields:
            Pixels, uint8 ``[B, C, H, W]``, and labels, int64 ``[B]``. A label is -1 in a dataset
            without labels.

        Raises:
            UserError: the dataset has fewer images than ``batch_size``, or a value is no number.
            BadShardError: a tar is damaged.
        """
        for name, value in (("shuffle", shuffle), ("seed", seed), ("keep", keep)):
            whole_number(name, value)
        if epochs is not None:
            whole_number("epochs", epochs)
        if not 1 <= whole_number("batch_size", batch_size) <= len(self):
            raise UserError(
                f"batch_size is {batch_size}: name a number from 1 to {len(self)}, the number of "
                f"images in {self.root}"
            )
        labelled = self.classes > 0
        images = ImageStream(
            self.paths.tars, batch_size, shuffle, seed, keep=keep, labelled=labelled
        )
        numbers = count() if epochs is None else range(epochs)
        return (batch for number in numbers for batch in images.epoch(number))

    def batches(self, size: int) -> Iterator[Batch]:
        """Every image once, in publishing order, as pixels and labels. The last may be smaller.

        Args:
            size: images in a batch.

        Raises:
            UserError: ``size`` is not a whole number above 0.
            BadShardError: a tar is damaged.
        """
        whole_number("size", size, least=1)
        return shard_batches(self.paths.tars, size, self.classes > 0)

    @property
    def paths(self) -> DatasetPaths:
        """The files of the dataset, for other programs to read."""
        layout, numbers = self._layout, range(len(self.plan))
        return DatasetPaths(
            tars=layout.tars(numbers),
            rows=tuple(layout.rows(number) for number in numbers),
            records=tuple(layout.record(number) for number in numbers),
            index_files=tuple(layout.file(name) for name in index_names(self._captions)),
        )

    def _present(self, number: int, record: ShardRecord | None) -> ShardRecord:
        if record is None:
            raise UserError(
                f"shard {shard_name(number)} of {self.root} is missing, or its record was changed: "
                "run synthesize first"
            )
        return record


def whole_number(name: str, value: object, least: int | None = 0) -> int:
    """``value`` as an int.

    Raises:
        UserError: it is no whole number, or less than ``least``.
    """
    number = value if isinstance(value, SupportsIndex) else None
    small = number is not None and least is not None and index(number) < least
    if number is None or isinstance(value, bool) or small:
        at_least = "" if least is None else f" of at least {least}"
        raise UserError(f"{name} is {value!r:.60}: give a whole number{at_least}")
    return index(number)


def _read_provenance(root: Location) -> tuple[Plan, int, tuple[str, ...] | None, bool]:
    """The plan, the number of classes, their names, and whether the samples have captions."""
    path = Layout(root).file(PROVENANCE)
    (text,) = read_many([path])
    if text is None:
        raise UserError(
            f"{root} is not a finished dataset, since it has no {PROVENANCE}: check the path, or "
            "run synthesize or finalize to finish the dataset"
        )
    try:
        parameters = json.loads(text)["predicate"]["buildDefinition"]["externalParameters"]
        synthesis = SynthesisConfig.model_validate_json(json.dumps(parameters["synthesis"]))
        adaptive = AdaptiveConfig.model_validate_json(json.dumps(parameters["adaptive"]))
        classes, names = parameters["teacher"]["classes"], parameters["teacher"]["class_names"]
        plan = make_plan(synthesis, adaptive, classes)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, or another version of this project wrote it: run finalize, "
            "which writes it again"
        ) from error
    captions = synthesis.captions is not None
    return plan, classes, None if names is None else tuple(names), captions
