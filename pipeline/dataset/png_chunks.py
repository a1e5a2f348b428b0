"""Look into a PNG file for chunks that this project does not write."""

from __future__ import annotations

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OURS = (b"IHDR", b"IDAT", b"IEND")


def foreign_chunk(data: bytes) -> str | None:
    """Find the first part of a PNG file that holds no pixels, such as a text or a colour profile.

    Args:
        data: the bytes of the file.

    Returns:
        A few words about that part, or None where the file holds pixels alone.
    """
    if not data.startswith(_SIGNATURE):
        return "no PNG signature"
    place = len(_SIGNATURE)
    while place < len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if kind not in _OURS:
            return f"a chunk {kind!r}"
        place += 12 + size
        if kind == b"IEND":
            break
    return None if place == len(data) else "data after its end"
