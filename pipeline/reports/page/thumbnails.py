"""Images of a dataset inside the page: each read alone from its tar, and made small enough."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.layout import PNG
from pipeline.dataset.tar import decode_image
from pipeline.errors import BadShardError
from pipeline.reports.pictures import as_picture
from pipeline.storage import Location, digest_bytes, requesting

MOST_BYTES = 1_100_000  # of all pictures of a page together, before they become text
PIXELATED = 96  # up to this side the pixels are shown as squares
# A side of None keeps the size, and a quality of None is PNG, without loss.
_FORMS: tuple[tuple[int | None, int | None], ...] = (
    (None, None),
    (PIXELATED, None),
    (224, 88),
    (192, 80),
    (160, 75),
    (128, 70),
    (96, 65),
    (64, 60),
)


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture of the page.

    Attributes:
        uri: a ``data:`` address with the whole picture.
        pixelated: whether its pixels are to be shown as squares.
        row: the Parquet row of the image.
    """

    uri: str
    pixelated: bool
    row: Mapping[str, Any]


def thumbnails(
    dataset: Dataset, rows: Mapping[int, Mapping[str, Any]], most: int = MOST_BYTES
) -> dict[int, Thumbnail]:
    """Encode images so that all of them fit into ``most`` bytes.

    Args:
        dataset: the dataset.
        rows: the Parquet row of each image, by any number.
        most: bytes of all pictures together.

    Raises:
        BadShardError: an image is not the one that its row describes.
    """
    pictures = {place: _read(dataset, row) for place, row in rows.items()}
    encoded: dict[int, tuple[str, bytes]] = {}
    for side, quality in _FORMS:
        encoded = {place: _encode(image, side, quality) for place, image in pictures.items()}
        if sum(len(data) for _, data in encoded.values()) <= most:
            break
    return {
        place: Thumbnail(_uri(kind, data), max(pictures[place].size) <= PIXELATED, rows[place])
        for place, (kind, data) in encoded.items()
    }


def data_uri(png: bytes) -> str:
    """A PNG file as an address that holds it."""
    return _uri(PNG, png)


def _read(dataset: Dataset, row: Mapping[str, Any]) -> Image.Image:
    tar = dataset.paths.tars[int(row["shard"].partition(".")[0])]
    try:
        data = _read_part(tar, row["offset"], row["size"])
    except OSError as error:
        raise BadShardError(f"image {row['key']} cannot be read ({error})") from error
    if bytes.fromhex(digest_bytes(data)) != row["sha256"]:
        raise BadShardError(
            f"image {row['key']} of {tar.name} was changed since it was made: run verify --repair"
        )
    return as_picture(decode_image(data))


def _read_part(path: Location, offset: int, size: int) -> bytes:
    if isinstance(path, Path):
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    with requesting(path):
        part: bytes = path.fs.cat_file(path.path, start=offset, end=offset + size)
        return part


def _encode(image: Image.Image, side: int | None, quality: int | None) -> tuple[str, bytes]:
    """The format and the bytes of a picture that is at most ``side`` pixels wide and high."""
    if quality is None and side is None and max(image.size) > 2 * PIXELATED:
        side, quality = 256, 90  # large images have no visible pixels to keep
    if side is not None and max(image.size) > side:
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if quality is None:
        image.save(buffer, "PNG", optimize=True)
        return PNG, buffer.getvalue()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return "jpeg", buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
