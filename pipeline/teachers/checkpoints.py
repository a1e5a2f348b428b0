"""Read files of weights, each of them once."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.storage import Location, exists, read_bytes
from pipeline.teachers.file_kinds import foreign_kind, is_safetensors
from pipeline.teachers.inert_types import inert_types
from pipeline.teachers.places import StateDict, find_states, shown, state_at
from pipeline.teachers.source import error_line

# What PyTorch says of objects that it does not make with `weights_only=True`.
_CODE = re.compile("GLOBAL|reduce for unrecognized|Can only|must be imported")
INDEX = ".index.json"  # end of the name of a file that lists the parts of a checkpoint


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file that was read: its name without folders, and the SHA-256 of the bytes read."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of a file of weights.

    Attributes:
        files: The files that were read: one, or the parts that an index lists.
        states: Every state dict in it, by its place, such as ``ema.state_dict``. The place is empty
            where the file itself is the state dict. The usual names come first.
        aliases: Names that the file leaves out because they share their tensor, to the name kept.
        keys: The file's keys on the first level.
    """

    files: tuple[WeightsFile, ...]
    states: Mapping[str, StateDict]
    aliases: Mapping[str, str]
    keys: tuple[str, ...]


def read_checkpoint(
    path: Location, role: str, key: str | None = None, sha256: str | None = None
) -> Checkpoint:
    """Read a safetensors file, a PyTorch file, or the parts that an index file lists.

    Every file is read once: digest, check and tensors come from the same bytes. PyTorch files are
    read with ``weights_only=True``: nothing in them is executed.

    Args:
        path: The file.
        role: The section of the parameters that error messages name.
        key: ``weights_key``: the place of the state dict, or the prefix of its keys.
        sha256: The expected digest of the file.

    Raises:
        UserError: The file is missing, has another digest, cannot be read or holds no state dict.
    """
    if isinstance(path, Path) and path.is_dir():
        names = shown(tuple(sorted(each.name for each in path.iterdir()))) or "it is empty"
        raise UserError(f"{role}.weights {path} is a folder: name a file in it ({names})")
    if isinstance(path, Path) and path.exists() and not path.is_file():
        raise UserError(f"{role}.weights {path} is not a regular file: name a file of weights")
    if not exists(path):
        raise UserError(f"{role}.weights: there is no file {path}")
    data = _bytes(path, role)
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and path.name.endswith(INDEX):
        raise UserError(
            f"{role}.sha256 is the digest of one file, but {role}.weights {path} lists several: "
            f"set {role}.sha256 to null"
        )
    if sha256 is not None and found != sha256.lower():
        raise UserError(f"{role}.weights {path} has sha256 {found}, {role}.sha256 says {sha256}")
    if path.name.endswith(INDEX):
        files, content, aliases = _parts(path, data, role)
    else:
        files = (WeightsFile(path.name, found),)
        content, aliases = _content(path, data, role)
    states = find_states(content) if key is None else {key: state_at(content, key)}
    if key is not None and not states[key]:
        holds = shown(tuple(map(str, content))) if isinstance(content, dict) else "no dictionary"
        raise UserError(
            f"{role}.weights_key is {key!r}, but {role}.weights {path} has no state dict there: "
            f"it holds {holds}"
        )
    keys = tuple(map(str, content)) if isinstance(content, dict) else ()
    if not states:
        holds = f"it holds {shown(keys)}" if keys else f"it holds {type(content).__name__}"
        raise UserError(
            f"{role}.weights {path} is not a state dict (names to tensors), and holds none: {holds}"
        )
    return Checkpoint(files, states, aliases, keys)


def part_names(index: bytes) -> list[str]:
    """The names of the files that an index file lists, which lie in its folder.

    Raises:
        ValueError: It is no index file, or it names a file elsewhere.
    """
    table = json.loads(index)
    places = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError("it has no weight_map")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if PurePosixPath(name).name != name or "\\" in name:
            raise ValueError(f"it names a file in another folder ({name})")
    return names


def _bytes(path: Location, role: str) -> bytes:
    try:
        return read_bytes(path)
    except (OSError, MemoryError) as error:
        raise UserError(f"{role}.weights {path} cannot be read: {error_line(error)}") from error


def _parts(
    path: Location, index: bytes, role: str
) -> tuple[tuple[WeightsFile, ...], dict[str, Any], dict[str, str]]:
    """Read the parts of a checkpoint, which an index file lists."""
    try:
        names = part_names(index)
    except ValueError as error:
        raise UserError(
            f"{role}.weights {path} is not the index of a checkpoint in parts: {error}"
        ) from error
    files, tensors, aliases = [], {}, {}
    for name in names:
        part = path.parent / name
        if not exists(part):
            raise UserError(f"{role}.weights {path} lists {name}, which is missing in its folder")
        data = _bytes(part, role)
        files.append(WeightsFile(name, hashlib.sha256(data).hexdigest()))
        content, of_part = _content(part, data, role)
        if not isinstance(content, dict):
            raise UserError(f"{role}.weights {part} is not a state dict (names to tensors)")
        tensors.update(content)
        aliases.update(of_part)
    return tuple(files), tensors, aliases


def _content(path: Location, data: bytes, role: str) -> tuple[Any, dict[str, str]]:
    """Decode a file. Its bytes, not its name, decide about the format."""
    try:
        if is_safetensors(data):
            from safetensors.torch import load

            return load(data), _aliases(data)
        if (kind := foreign_kind(data, path.suffix)) is not None:
            raise UserError(f"{role}.weights {path} {kind}")
        with inert_types(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), {}
    except UserError:
        raise
    except Exception as error:
        text = str(error)
        if isinstance(error, pickle.UnpicklingError) and _CODE.search(text):
            name = re.search(r"GLOBAL (\S+)", text)
            what = f"an object of the type {name[1]}" if name else "a pickled object"
            raise UserError(
                f"{role}.weights {path} holds more than tensors ({what}), and loading it could run "
                "code: load it in a script of your own, save the network's state_dict() and name "
                "that file"
            ) from error
        raise UserError(
            f"{role}.weights {path} cannot be read, so it is damaged, truncated or no file of "
            f"weights: copy or download it again{_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """What a library says, but not PyTorch's advice to load the file without ``weights_only``."""
    return "" if "weights_only" in str(error) else f" ({error_line(error)})"


def _aliases(data: bytes) -> dict[str, str]:
    """The names that ``safetensors.torch.save_model`` left out, to the names it kept."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header.get("__metadata__") or {})
