"""Arrays in NumPy's file format, read without unpickling and within the size of the data."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode_array(values: NDArray[np.generic]) -> bytes:
    """Encode an array of numbers in NumPy's file format."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def decode_array(data: bytes) -> NDArray[Any]:
    """Decode an array in NumPy's format. Nothing is unpickled.

    The size of the array is compared with the size of the data before it is allocated.

    Raises:
        ValueError: the data is no such array, or it is cut off.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, _, kind = read(file)
        if kind.hasobject or min(shape, default=0) < 0:
            raise ValueError("an array is not of plain numbers")
        if math.prod(shape) * kind.itemsize != len(data) - file.tell():
            raise ValueError("an array has another size than its header says")
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, MemoryError, RecursionError, TypeError, SyntaxError) as error:
        raise ValueError(f"an array cannot be read: {error}") from error
    return array
