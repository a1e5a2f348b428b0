"""Pictures of shapes on textured grounds, with the class of each pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDE = 32
CLASSES = ("ground", "disc", "square", "triangle")
_MOST = 4  # shapes in a picture

Array = NDArray[np.float32]


def draw(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw pictures: uint8 ``[N, 3, SIDE, SIDE]``, and the class of each pixel ``[N, SIDE, SIDE]``.

    The ground is a gradient of two colours with waves. Shapes have random places, sizes, turns and
    colours, and cover each other.
    """
    rng = np.random.default_rng(seed)
    pictures = [_picture(rng) for _ in range(count)]
    pixels, classes = (np.stack(part) for part in zip(*pictures, strict=True))
    return pixels, classes


def _picture(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    turn, waves, phase = rng.uniform(0, 6.28), rng.uniform(2, 12), rng.uniform(0, 6.28)
    along = np.cos(turn) * rows + np.sin(turn) * columns
    first, second = rng.uniform(0, 1, (2, 3, 1, 1)).astype(np.float32)
    image = first + (second - first) * along + 0.1 * np.sin(6.28 * waves * along + phase)
    classes = np.zeros((SIDE, SIDE), np.int64)
    for _ in range(rng.integers(1, _MOST + 1)):
        kind = int(rng.integers(1, len(CLASSES)))
        inside = _inside(kind, rows, columns, rng)
        colour = rng.uniform(0, 1, (3, 1)).astype(np.float32)
        image[:, inside] = colour + 0.1 * np.sin(60 * along[inside])
        classes[inside] = kind
    image = image + rng.normal(0, 0.04, image.shape)
    return (255 * image.clip(0, 1)).round().astype(np.uint8), classes


def _inside(kind: int, rows: Array, columns: Array, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The pixels of a shape of a class."""
    row, column = rng.uniform(0.1, 0.9, 2)
    size, turn = rng.uniform(0.1, 0.25), rng.uniform(0, 6.28)
    y, x = (rows - row) / size, (columns - column) / size
    y, x = np.cos(turn) * y - np.sin(turn) * x, np.sin(turn) * y + np.cos(turn) * x
    if kind == 1:
        return np.asarray(y**2 + x**2 < 1)
    if kind == 2:
        return np.asarray(np.maximum(abs(y), abs(x)) < 0.85)
    return np.asarray((y > -0.6) & (y < 1.2 - 1.9 * abs(x)))
