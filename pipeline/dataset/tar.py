"""Write and read the tar of one shard: equal samples give equal bytes, and damage is an error.

This is the only parser of shards of this project. It reads plain ``ustar`` headers alone, which is
several times faster than ``tarfile`` on small images. Tars of other programs go through WebDataset,
see :func:`pipeline.dataset.stream.ordered_batches`.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image

from pipeline.dataset.arrays import decode_array, encode_array
from pipeline.dataset.layout import CAPTION, CLASS, FACTS, IMAGES, LOGITS, NPY, PNG, VIEWS
from pipeline.errors import BadShardError
from pipeline.storage import Location, digest_bytes, read_bytes

Pixels = NDArray[np.uint8]
_NUMPY_START = b"\x93NUMPY"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's modes by the number of channels
_BLOCK = 512  # bytes; a tar consists of such blocks
_CHECKSUM = slice(148, 156)  # of a header
_MEMBERS = frozenset({CAPTION, CLASS, FACTS, LOGITS, VIEWS, *IMAGES})
MOST_CLASSES = 32767
MOST_PIXELS = 4096  # a side of an image


@dataclass(frozen=True, slots=True)
class Sample:
    """One published image.

    Attributes:
        key: the name of its members, without their extension.
        pixels: uint8 ``[C, H, W]``.
        label: the index of its class, or None for a dataset without labels.
        facts: the content of its JSON member.
        logits: the teacher's logits ``[K]``, or None for a dataset without soft labels.
        caption: a text about the image, or None for a dataset without captions.
        views: descriptions and logits ``[K, 9 + classes]`` of the image's stored views, or None for
            a dataset without them.
    """

    key: str
    pixels: Pixels
    label: int | None
    facts: dict[str, Any]
    logits: NDArray[np.float16] | None = None
    caption: str | None = None
    views: NDArray[np.float16] | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """Where the image of a sample lies in its tar, and the digest of its bytes.

    Attributes:
        offset: the first byte of the image in the tar.
        size: in bytes.
        sha256: the digest of the image's bytes.
    """

    offset: int
    size: int
    sha256: str


def image_kind(channels: int) -> str:
    """The extension of an image's member: ``png``, or ``npy`` where PNG has no such channels."""
    return PNG if channels in _MODES else NPY


def image_part(parts: Mapping[str, bytes]) -> bytes:
    """The encoded image among the members of a sample.

    Raises:
        KeyError: the sample has no image.
    """
    return parts[PNG] if PNG in parts else parts[NPY]


def encode_image(pixels: Pixels) -> bytes:
    """Encode an image without loss: as PNG with 1, 3 or 4 channels, else in NumPy's format.

    Args:
        pixels: uint8 ``[C, H, W]``.
    """
    channels = pixels.shape[0]
    if image_kind(channels) == NPY:
        return encode_array(pixels)
    array = pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(array, _MODES[channels]).save(buffer, "PNG")
    return buffer.getvalue()


def decode_image(data: bytes) -> Pixels:
    """Decode an image to uint8 ``[C, H, W]``: the inverse of :func:`encode_image`.

    Raises:
        ValueError: the data is no image, an array of another shape or type, or an image in another
            colour mode, such as one with a palette.
    """
    if data.startswith(_NUMPY_START):
        array: Pixels = decode_array(data)
        if array.ndim != 3 or array.dtype != np.uint8:
            raise ValueError(f"an image is {array.dtype} {array.shape}, not uint8 [C, H, W]")
        return array
    try:
        with Image.open(io.BytesIO(data)) as image:
            if max(image.size) > MOST_PIXELS:
                raise ValueError(
                    f"an image has {image.width} x {image.height} pixels; the limit is "
                    f"{MOST_PIXELS} a side"
                )
            if image.mode not in _MODES.values():  # the values of a palette are no brightness
                raise ValueError(
                    f"an image has Pillow's mode {image.mode}, not {', '.join(_MODES.values())}"
                )
            array = np.asarray(image)
    # Pillow raises these for damaged files, and for files that decode to very many pixels.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"an image cannot be read: {error}") from error
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def write_tar(file: IO[bytes], samples: Iterator[Sample]) -> list[Member]:
    """Write samples as a tar: ``<key>.cls``, ``.json``, ``.logits.npy``, ``.png``, ``.txt``, ...

    Class, logits, caption and stored views are left out where a sample has none. An image that PNG
    cannot hold is ``.npy``. The tar holds no time, user or host, so equal samples give equal bytes.

    Args:
        file: an empty file, open for writing and reading.
        samples: in publishing order.

    Returns:
        Where the image of each sample lies.
    """
    digests = []
    with _writer(file) as tar:
        for sample in samples:
            image = encode_image(sample.pixels)
            parts: dict[str, str | bytes] = {
                "__key__": sample.key,
                FACTS: json.dumps(sample.facts, sort_keys=True).encode(),
                image_kind(sample.pixels.shape[0]): image,
            }
            if sample.label is not None:
                parts[CLASS] = str(sample.label).encode()
            if sample.logits is not None:
                parts[LOGITS] = encode_array(sample.logits)
            if sample.caption is not None:
                parts[CAPTION] = sample.caption.encode()
            if sample.views is not None:
                parts[VIEWS] = encode_array(sample.views)
            tar.write(parts)
            digests.append(digest_bytes(image))
    file.flush()
    file.seek(0)
    images = [
        (offset, len(data))
        for name, data, offset in _members("the tar", file)
        if name.partition(".")[2] in IMAGES
    ]
    return [
        Member(offset, size, digest) for (offset, size), digest in zip(images, digests, strict=True)
    ]


def _writer(file: IO[bytes]) -> wds.TarWriter:
    return wds.TarWriter(file, encoder=False, mtime=0)


def holds_samples_alone(data: bytes, samples: Iterable[tuple[str, dict[str, bytes], int]]) -> bool:
    """Whether a tar has exactly the bytes that this project writes for its samples.

    Other headers and more padding could hide something.

    Args:
        data: the tar.
        samples: what :func:`parse_tar` read from it.
    """
    file = io.BytesIO()
    with _writer(file) as tar:
        for key, parts, _ in samples:
            tar.write({"__key__": key, **parts})
    return file.getbuffer() == data


def read_tar(path: Location) -> Iterator[tuple[str, dict[str, bytes], int]]:
    """The samples of the tar at ``path``: see :func:`parse_tar`.

    Raises:
        BadShardError: the file cannot be read, or it is not a tar of this project.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise BadShardError(f"{path.name}: {error}") from error
    yield from parse_tar(path.name, io.BytesIO(data))


def parse_tar(name: str, file: IO[bytes]) -> Iterator[tuple[str, dict[str, bytes], int]]:
    """The samples of a tar that this project wrote, one at a time.

    Args:
        name: the name of the tar, for errors.
        file: the tar, read from its beginning to its end.

    Yields:
        The key of a sample, its members by extension, and the offset of its image in bytes; the
        offset is -1 where the sample has no image.

    Raises:
        BadShardError: the file is not a plain tar, it is cut off, a member occurs twice, or a
            member is a link, a device, a path, or of another kind than this project writes.
    """
    key, offset = "", -1
    parts: dict[str, bytes] = {}
    seen = set()
    for member, data, start in _members(name, file):
        stem, _, extension = member.partition(".")
        if not stem or not extension or "/" in member:
            raise BadShardError(f"{name}: member {member!r} is not a plain file of a sample")
        if extension not in _MEMBERS:
            raise BadShardError(
                f"{name}: member {member!r} is not of this project: do not open the tar with "
                "programs that decode every member, because some run code"
            )
        if member in seen:
            raise BadShardError(f"{name}: member {member!r} occurs twice")
        seen.add(member)
        if stem != key and parts:
            yield key, parts, offset
            parts, offset = {}, -1
        key = stem
        parts[extension] = data
        if extension in IMAGES:
            offset = start
    if parts:
        yield key, parts, offset


def _members(name: str, file: IO[bytes]) -> Iterator[tuple[str, bytes, int]]:
    """The name, the content and the content's offset of each member."""
    offset, length = 0, _length(file)
    while (header := file.read(_BLOCK)) and header[0]:
        member, size = _read_header(name, header)
        padded = -(-size // _BLOCK) * _BLOCK
        if offset + _BLOCK + padded > length:  # before memory is allocated for it
            raise BadShardError(f"{name}: cut off in {member!r}")
        data = file.read(padded)
        if len(data) < padded:
            raise BadShardError(f"{name}: cut off in {member!r}")
        yield member, data[:size], offset + _BLOCK
        offset += _BLOCK + padded
    rest = header + file.read()
    if len(rest) < 2 * _BLOCK or rest.strip(b"\0"):
        raise BadShardError(f"{name}: cut off, or something follows the last sample")


def _length(file: IO[bytes]) -> float:
    """The size of a file in bytes, or infinity where the file cannot tell."""
    if not file.seekable():
        return math.inf
    place = file.tell()
    length = file.seek(0, io.SEEK_END)
    file.seek(place)
    return length


def _read_header(name: str, header: bytes) -> tuple[str, int]:
    """The name and the size in bytes of the member whose header this is."""
    try:
        expected = int(header[_CHECKSUM].rstrip(b"\0 "), 8)
        size = int(header[124:136].rstrip(b"\0 "), 8)
        member = header[:100].rstrip(b"\0").decode()
    except ValueError as error:
        raise BadShardError(f"{name}: not a tar, or its header is damaged") from error
    # The checksum counts its own eight bytes as spaces. Without its zeros a header sums up sooner.
    found = sum(header.translate(None, b"\0")) - sum(header[_CHECKSUM]) + 8 * ord(" ")
    if len(header) < _BLOCK or size < 0 or found != expected:
        raise BadShardError(f"{name}: not a tar, or its header is damaged")
    if header[156:157] != b"0" or header[345]:  # the kind of a plain file; the start of a path
        raise BadShardError(f"{name}: member {member!r} is not a plain file of a sample")
    return member, size
