"""Recognise files that hold no PyTorch weights by their first bytes, and say what to do."""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib

_AGAIN = "copy or download it again"
_TO_ONNX = "convert the model to ONNX (docs/keras.md) and name it in teacher.source (onnx:FILE)"
_UNPACK = "unpack it and name the weights file in it"
# First bytes, what the file is, and what to do.
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as Keras and TensorFlow write",
        _TO_ONNX,
    ),
    (
        b"\x93NUMPY",
        "a NumPy array",
        "load the arrays into the PyTorch network and save its state_dict()",
    ),
    (b"GGUF", "a GGUF file, usually quantised", "name the original PyTorch or safetensors file"),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"%PDF", "a PDF document", _AGAIN),
)
_WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body", b"<script")
_STEMS_OF_ONNX = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)  # fields of ModelProto after the first
_PROTOCOLS = tuple(bytes([number]) for number in range(6))
# Files of torch.save before its zip format begin with a pickled number.
_TORCH_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_TEXT = frozenset(range(32, 127)) | {9, 10, 13}


def foreign_kind(data: bytes, suffix: str) -> str | None:
    """Say what a file is if PyTorch weights cannot be read from it.

    Args:
        data: All bytes of the file.
        suffix: The end of its name, such as ``.pb``.

    Returns:
        The rest of a sentence that begins with the file's name, such as "is empty: copy or download
        it again". None where the bytes may be weights.

    Example::

        foreign_kind(b"<!DOCTYPE html>...", ".pth")  # "is a web page: ..."
    """
    if not data:
        return f"is empty: {_AGAIN}"
    for start, kind, remedy in _STARTS:
        if data.startswith(start):
            return f"is {kind}: {remedy}"
    if data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_WEB_PAGE):
        return (
            "is a web page, not the file that the page offers: download the file by its direct "
            "link (`raw` at GitHub, `resolve` at Hugging Face), signed in if necessary"
        )
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _foreign_zip(data)
    if data[:1] == b"\x80" and data[1:2] in _PROTOCOLS and not data.startswith(_TORCH_PICKLE):
        return (
            f"holds more than tensors: it is a pickle{_first_object(data)} that torch.save did not "
            "write. It could run code, so it is not read: save the network's state_dict() with "
            "torch.save, and name that file"
        )
    if data[257:262] == b"ustar":
        return f"is a tar archive: {_UNPACK}"
    if data[4:8] == b"TFL3":
        return f"is a TFLite file: {_TO_ONNX}"
    return _foreign_protobuf(data, suffix) or _foreign_text(data)


def is_safetensors(data: bytes) -> bool:
    """Whether the bytes begin as safetensors do: the length of a JSON header, and the header."""
    likely = data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 2**32
    return len(data) > 9 and (likely or data[8:10] == b'{"')


def _first_object(data: bytes) -> str:
    """Name the first class or function in a pickle, without loading it."""
    texts: list[str] = []
    try:
        for code, value, _ in pickletools.genops(data):
            if code.name == "GLOBAL":
                return f" of {str(value).replace(' ', '.'):.80}"
            if code.name == "STACK_GLOBAL":
                return f" of {'.'.join(texts[-2:]):.80}"
            if isinstance(value, str):
                texts.append(value)
    except Exception:  # pickletools may raise anything on a damaged file
        return ""
    return ""


def damaged_member(data: bytes) -> str | None:
    """Find damage in a zip archive, of which ``torch.load`` compares no checksum.

    Args:
        data: All bytes of the archive.

    Returns:
        The name of the first file in it whose content has another checksum (CRC-32) than the
        archive says. None where all are right, and where the archive was written without
        checksums, as after ``torch.serialization.set_crc32_options(False)``.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.testzip() if any(info.CRC for info in archive.infolist()) else None


def is_onnx(data: bytes) -> bool:
    """Whether the bytes begin as ONNX does: the version of the format, and a usual next field."""
    return len(data) > 3 and data[0] == 8 and 3 <= data[1] <= 32 and data[2] in _STEMS_OF_ONNX


def _foreign_zip(data: bytes) -> str | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
        damaged = damaged_member(data)
    except (zipfile.BadZipFile, ValueError, RuntimeError, OSError, zlib.error):
        return f"is damaged or truncated (a zip archive, as torch.save writes): {_AGAIN}"
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends:
        return (
            "is a TorchScript archive, whose layers cannot be inspected: save the state_dict() of "
            "the Python network, or of torch.jit.load(...)"
        )
    if "archive_format" in ends or "serialized_exported_program.json" in ends:
        return (
            "is a program of torch.export, not a state dict: save the state_dict() of the network "
            "that was exported"
        )
    if "data.pkl" in ends and damaged is not None:
        return f"is damaged ({damaged} in it has another checksum than the file says): {_AGAIN}"
    if "data.pkl" in ends:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return (
            "is a NumPy archive (npz): load its arrays into the PyTorch network and save its "
            "state_dict()"
        )
    if "model.weights.h5" in ends:
        return f"is a Keras file: {_TO_ONNX}"
    first = f" of {names[0]} and more" if names else " without files"
    return f"is a zip archive{first}, and PyTorch did not write it: {_UNPACK}"


def _foreign_protobuf(data: bytes, suffix: str) -> str | None:
    """Recognise ONNX by its version and the field after it, and TensorFlow by the file's name."""
    if suffix == ".pb":
        return f"is a TensorFlow graph: {_TO_ONNX}"
    if not is_onnx(data) and suffix != ".onnx":
        return None
    return (
        "is an ONNX file, which holds the network too: name it in teacher.source (onnx:FILE), and "
        "set teacher.weights to null; the package onnx2torch converts it"
    )


def _foreign_text(data: bytes) -> str | None:
    head = data[:200]
    if not all(byte in _TEXT for byte in head):
        return None
    line = head.decode().strip().partition("\n")[0][:40].strip()
    return f"is a text file that begins with {line!r}: name the file of the weights"
