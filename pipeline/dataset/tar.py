"""One shard's tar: samples in, the same bytes out every time; and back, trusting nothing."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import BadShardError
from pipeline.storage import Location, digest_bytes, read_bytes

Pixels = NDArray[np.uint8]
_NPY = b"\x93NUMPY"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
IMAGES = ("png", "npy")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one image is published as. ``pixels`` is ``[C, H, W]``; ``logits`` ``[K]`` or None."""

    key: str
    pixels: Pixels
    label: int
    facts: dict[str, Any]
    logits: NDArray[np.float16] | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """Where a sample's image lies in its tar, and the digest of those bytes."""

    offset: int
    size: int
    sha256: str


def image_kind(channels: int) -> str:
    """The extension of an image's member: ``png``, or ``npy`` where PNG has no such channels."""
    return "png" if channels in _MODES else "npy"


def image_part(parts: Mapping[str, bytes]) -> bytes:
    """The image among a sample's parts.

    Raises:
        KeyError: there is none.
    """
    return parts["png"] if "png" in parts else parts["npy"]


def encode_image(pixels: Pixels) -> bytes:
    """``[C, H, W]`` uint8 without loss: PNG with 1, 3 or 4 channels, otherwise NumPy's format."""
    channels = pixels.shape[0]
    if image_kind(channels) == "npy":
        return _npy(pixels)
    array = pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(array, _MODES[channels]).save(buffer, "PNG")
    return buffer.getvalue()


def decode_image(data: bytes) -> Pixels:
    """The inverse of :func:`encode_image`.

    Raises:
        ValueError: no image, an array of another shape or type, or an image of another mode.
    """
    if data.startswith(_NPY):
        array: Pixels = np.load(io.BytesIO(data), allow_pickle=False)
        if array.ndim != 3 or array.dtype != np.uint8:
            raise ValueError(f"an image is {array.dtype} {array.shape}")
        return array
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in _MODES.values():  # a palette's indices are no shades
                raise ValueError(
                    f"an image has Pillow's mode {image.mode}, not {', '.join(_MODES.values())}"
                )
            array = np.asarray(image)
    except (OSError, SyntaxError) as error:  # Pillow's words for cut off and broken
        raise ValueError(f"an image cannot be read: {error}") from error
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def write_tar(file: IO[bytes], samples: Iterator[Sample]) -> list[Member]:
    """Write ``<key>.cls .json [.logits.npy] .png`` of each sample; where the images came to lie.

    An image that PNG cannot hold is ``<key>.npy``.

    No time, user or host enters the tar.
    """
    digests = []
    with wds.TarWriter(file, encoder=False, mtime=0) as tar:
        for sample in samples:
            image = encode_image(sample.pixels)
            parts: dict[str, str | bytes] = {
                "__key__": sample.key,
                "cls": str(sample.label).encode(),
                "json": json.dumps(sample.facts, sort_keys=True).encode(),
                image_kind(sample.pixels.shape[0]): image,
            }
            if sample.logits is not None:
                parts["logits.npy"] = _npy(sample.logits)
            tar.write(parts)
            digests.append(digest_bytes(image))
    file.flush()
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as written:
        images = [member for member in written if member.name.partition(".")[2] in IMAGES]
    return [
        Member(member.offset_data, member.size, digest)
        for member, digest in zip(images, digests, strict=True)
    ]


def read_tar(path: Location) -> Iterator[tuple[str, dict[str, bytes], int]]:
    """The samples of the tar at ``path``: see :func:`parse_tar`."""
    try:
        data = read_bytes(path)
    except OSError as error:
        raise BadShardError(f"{path.name}: {error}") from error
    yield from parse_tar(path.name, data)


def parse_tar(name: str, data: bytes) -> Iterator[tuple[str, dict[str, bytes], int]]:
    """Each sample's key, its parts by extension, and the offset of its image.

    ``name`` is the tar's, for errors.

    Raises:
        BadShardError: not a plain tar, or a member is a link, a device, or names a path.
    """
    key, offset, end = "", -1, 0
    parts: dict[str, bytes] = {}
    seen = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                stem, _, extension = member.name.partition(".")
                if not member.isreg() or "/" in member.name or not stem or not extension:
                    raise BadShardError(f"{name}: member {member.name!r} is not a plain file")
                if stem != key and parts:
                    yield key, parts, offset
                    parts, offset = {}, -1
                if member.name in seen:
                    raise BadShardError(f"{name}: {member.name} is there twice")
                key, end = stem, tar.offset
                seen.add(member.name)
                content = tar.extractfile(member)
                assert content is not None
                parts[extension] = content.read()
                if extension in IMAGES:
                    offset = member.offset_data
        rest = memoryview(data)[end:]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BadShardError(f"{name}: {error}") from error
    if len(rest) < 2 * tarfile.BLOCKSIZE or any(rest):
        raise BadShardError(f"{name}: cut off, or something follows the last sample")
    if parts:
        yield key, parts, offset


def _npy(values: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()
