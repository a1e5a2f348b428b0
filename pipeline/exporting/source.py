"""Read the chosen images of a dataset, checked against its provenance."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.config.teacher import InputConfig
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.layout import CLASS, IMAGES, PROVENANCE, Layout, sample_key, tar_name
from pipeline.dataset.plan import ShardPlan
from pipeline.dataset.tar import Pixels, decode_image, image_part, parse_tar
from pipeline.errors import BadShardError, UserError
from pipeline.exporting.subset import choose, rule
from pipeline.storage import digest_bytes, read_bytes, read_many
from pipeline.synthesis.hugging_face import distinct


@dataclass(frozen=True, slots=True)
class Exported:
    """One image that was read.

    Attributes:
        key: the name of its members in the tar.
        label: the index of its class, or None without labels.
        data: the bytes of its file in the tar: a PNG, or NumPy's format.
        shape: the channels, height and width that it must have.
    """

    key: str
    label: int | None
    data: bytes
    shape: tuple[int, int, int]

    def pixels(self) -> Pixels:
        """Decode the image to uint8 ``[C, H, W]``.

        Raises:
            BadShardError: the image cannot be decoded, or it has another shape.
        """
        try:
            pixels = decode_image(self.data)
        except ValueError as error:
            raise BadShardError(f"image {self.key}: {error}") from error
        if pixels.shape != self.shape:
            raise BadShardError(
                f"image {self.key} has the shape {pixels.shape}, not {self.shape} as in "
                f"{PROVENANCE}"
            )
        return pixels


@dataclass(frozen=True, slots=True)
class Source:
    """The chosen images of a finished dataset.

    Attributes:
        dataset: the dataset.
        provenance: the bytes of its provenance.
        digests: the SHA-256 of each of its files by name, as the provenance states them.
        input: the images that the teacher takes.
        chosen: of all images of the dataset, whether each is read.
    """

    dataset: Dataset
    provenance: bytes
    digests: Mapping[str, str]
    input: InputConfig
    chosen: NDArray[np.bool_]

    def __len__(self) -> int:
        """The number of images to read."""
        return int(self.chosen.sum())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.input.channels, self.input.height, self.input.width

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self.dataset.classes > 0

    @property
    def which(self) -> str:
        """Which images of the dataset are exported, in words."""
        return rule(self.dataset.plan.labels, self.chosen, self.labelled)

    @property
    def class_names(self) -> list[str]:
        """A different name for each class; its index where the teacher has no names."""
        numbers = [str(label) for label in range(self.dataset.classes)]
        return distinct(self.dataset.class_names or numbers)

    def samples(self, title: str = "export") -> Iterator[Exported]:
        """The chosen images in the order of their keys, behind a progress bar.

        The tars are read one at a time, and a tar without a chosen image is not read.

        Args:
            title: the title of the progress bar.

        Raises:
            UserError: a tar is missing, or it is not the one of the provenance.
            BadShardError: a tar holds other samples than the plan says.
        """
        with tqdm(total=len(self), desc=title, unit="img") as bar:
            for shard in self.dataset.plan:
                chosen = self.chosen[shard.first : shard.first + len(shard.labels)]
                if not chosen.any():
                    continue
                data = self.checked(tar_name(shard.number))
                samples = _samples(shard, data, self.shape, self.labelled)
                for sample, wanted in zip(samples, chosen, strict=True):
                    if wanted:
                        yield sample
                        bar.update()

    def checked(self, name: str) -> bytes:
        """The bytes of a file of the dataset.

        Raises:
            UserError: the file is missing, or its digest is not the one in the provenance.
        """
        path = Layout(self.dataset.root).file(name)
        try:
            data = read_bytes(path)
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: {ADVICE}") from error
        if digest_bytes(data) != self.digests.get(name):
            raise changed(name)
        return data


ADVICE = "run verify --repair, or copy the dataset from its maker again"


def changed(name: str) -> UserError:
    """The error for a file whose digest is not the one in the provenance."""
    return UserError(f"{name} was changed: its sha256 is not that of {PROVENANCE}: {ADVICE}")


def open_source(dataset: Dataset, images: int | None, seed: int | None = None) -> Source:
    """Read the provenance of a dataset and choose the images to read.

    Args:
        dataset: the dataset.
        images: how many images to read, the same number of each class; None reads all.
        seed: draws the images of each class at random. None takes the first ones.

    Raises:
        UserError: the provenance is damaged, or the dataset has too few images.
    """
    path = Layout(dataset.root).file(PROVENANCE)
    (text,) = read_many([path])
    try:
        statement = json.loads(text or b"")
        digests = {item["name"]: item["digest"]["sha256"] for item in statement["subject"]}
        teacher = statement["predicate"]["buildDefinition"]["externalParameters"]["teacher"]
        shape = InputConfig.model_validate_json(json.dumps(teacher["input"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, or another version of this project wrote it: run finalize, "
            "which writes it again"
        ) from error
    return Source(dataset, text or b"", digests, shape, choose(dataset.plan.labels, images, seed))


def _samples(
    shard: ShardPlan, data: bytes, shape: tuple[int, int, int], labelled: bool
) -> Iterator[Exported]:
    """The samples of a tar, which must be those of the plan."""
    name = tar_name(shard.number)
    samples = list(parse_tar(name, io.BytesIO(data)))
    if len(samples) != len(shard.labels):
        raise BadShardError(f"{name} has {len(samples)} samples, not {len(shard.labels)}")
    for index, (key, parts, _) in enumerate(samples):
        prefix, label = key.partition("-")[0], int(shard.labels[index]) if labelled else None
        if not prefix.isalnum() or key != sample_key(prefix, shard.first + index):
            raise BadShardError(f"{name}: sample {key!r} is not image {shard.first + index}")
        expected = None if label is None else str(label).encode()
        if parts.get(CLASS) != expected or not parts.keys() & set(IMAGES):
            of = "a class" if label is None else f"not the class {label}"
            raise BadShardError(f"{name}: sample {key} has no image, or {of}")
        yield Exported(key, label, image_part(parts), shape)
