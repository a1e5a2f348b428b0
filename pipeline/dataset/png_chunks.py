"""Look into a PNG file for anything that this project does not write."""

from __future__ import annotations

import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_START = _SIGNATURE + b"\0\0\0\rIHDR"
_OURS = (b"IHDR", b"IDAT", b"IEND")
_CHANNELS = {0: 1, 2: 3, 6: 4}  # by the colour type of the header
_HEADER_END = 33
_STEP = 2**20  # bytes that are decompressed at a time


def foreign_chunk(data: bytes) -> str | None:
    """Find the first part of a PNG file that holds no pixels, such as a text or a colour profile.

    Args:
        data: the bytes of the file.

    Returns:
        A few words about that part, or None where the file holds pixels alone.
    """
    if not data.startswith(_START):
        return "no PNG signature and header"
    place, pixels, content = len(_SIGNATURE), [], b""
    while place < len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if kind not in _OURS or (kind == b"IHDR" and place > len(_SIGNATURE)):
            return f"a chunk {kind!r}"
        content = data[place + 8 : place + 8 + size]
        if kind == b"IDAT":
            pixels.append(content)
        place += 12 + size
        if kind == b"IEND":
            break
    if place != len(data) or content:
        return "data after its end"
    return None if _holds_pixels_alone(data, b"".join(pixels)) else "data after its pixels"


def _holds_pixels_alone(data: bytes, compressed: bytes) -> bool:
    """Whether the compressed data has the size that the header of the file says."""
    if len(data) < _HEADER_END:
        return False
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    expected = height * (1 + width * _CHANNELS.get(data[25], 0))
    stream, found = zlib.decompressobj(), 0
    try:
        while compressed and found <= expected:
            found += len(stream.decompress(compressed, _STEP))
            compressed = stream.unconsumed_tail
    except zlib.error:
        return False
    return found == expected and not stream.unused_data and not compressed
