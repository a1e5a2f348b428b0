"""Read a parameter file: YAML, overrides, and one line for each mistake."""

from __future__ import annotations

import difflib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.overrides import check_allowed, check_place, override
from pipeline.config.paths import check_lasting
from pipeline.config.schema import Config
from pipeline.config.yaml_text import DEEPEST, MOST_BYTES, MOST_NODES, decode_text, read_yaml
from pipeline.device.torch_state import usual_torch_state
from pipeline.errors import UserError
from pipeline.teachers.inferred import FittingPreset, check_digest, complete_teacher


def load_params(
    path: str | Path = "params.yaml", overrides: Mapping[str, Any] | None = None
) -> Config:
    """Read and check a parameter file.

    Args:
        path: The YAML file. ``params.yaml`` in the repository shows every key.
        overrides: Values that replace the file's, such as ``{"synthesis.images": 64}``.

    Returns:
        The parameters. What the file leaves out of ``teacher`` is filled in from the teacher's
        source.

    Raises:
        UserError: The file is missing or is not YAML, or a key or a value is wrong.

    Example:
        >>> config = load_params("params.yaml", {"synthesis.images": 64})
        >>> config.synthesis.images
        64
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"path is {path!r:.60}: name a parameter file")
    path = Path(path)
    check_place(path)
    values = read_yaml(decode_text(_read(path), str(path)), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections (teacher:, synthesis:, ...)")
    return parse_params(values, str(path), overrides)


def load_command_params(path: str | Path, overrides: Mapping[str, Any] | None) -> Config:
    """As :func:`load_params`, for a command: it refuses places in the memory of its process."""
    config = load_params(path, overrides)
    check_lasting(config.paths)
    return config


def parse_params(
    values: Mapping[str, Any], name: str = "params", overrides: Mapping[str, Any] | None = None
) -> Config:
    """Check parameters that are already in memory.

    Args:
        values: The sections, as :func:`load_params` reads them from a file.
        name: Where the values came from, for error messages.
        overrides: Values that replace these, such as ``{"synthesis.images": 64}``.

    Returns:
        The parameters. Where ``values`` give ``teacher.classes`` and ``teacher.input``, no network
        is built. The preset ``auto`` is resolved when something asks for the objective first.

    Raises:
        UserError: A key or a value is wrong, or the teacher's source cannot be read.
    """
    overrides = overrides or {}
    if not isinstance(overrides, Mapping):
        raise UserError(
            f'overrides is {overrides!r:.60}: give a dict, as {{"synthesis.images": 100}}'
        )
    check_allowed(overrides)
    _check_tree(values, name)
    for key, value in overrides.items():
        _check_tree(value, f"--set {key}")
    changed = deepcopy(dict(values))
    for key, value in overrides.items():
        override(changed, key, value)
    with usual_torch_state():
        values = complete_teacher(changed)
    try:
        # JSON mode is strict, but accepts lists for tuples and text for integer keys.
        config = Config.model_validate_json(json.dumps(values, default=_plain))
    except ValidationError as error:
        wrong = _most_specific(error.errors())
        raise UserError(f"{_origin(wrong, name, overrides)}: {_explain(wrong)}") from error
    check_digest(config.teacher, f"{name}: teacher")
    if config.evaluation.verifier is not None:
        check_digest(config.evaluation.verifier, f"{name}: evaluation.verifier")
    return config.with_fitting_preset(FittingPreset.of(config.teacher))


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn ``section.key=value`` strings into overrides; each value is read as YAML.

    Raises:
        UserError: A string has another form, or its value is not YAML.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set {pair!r}: write section.key=value")
        overrides[key] = read_yaml(text, f"--set {key}")
    return overrides


def parse_range(text: str | None) -> range | None:
    """Turn ``0:8`` into the shards 0 to 7; None stays None.

    Raises:
        UserError: The text has another form, or the range is empty.
    """
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise UserError(f"--shards {text!r}: write FIRST:END, such as 0:8 for the first eight")
    return range(int(start), int(stop))


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, and anything else as text, which the schema refuses."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _read(path: Path) -> bytes:
    shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}..."
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise UserError(f"{shown} is a directory: name a parameter file with --params")
        if not stat.S_ISREG(kind):
            raise UserError(f"{shown} is not a regular file: name a parameter file with --params")
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL
        raise UserError(f"there is no parameter file {shown}: name one with --params") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"the parameter file {shown} cannot be read: {reason}") from error


def _check_tree(values: Any, name: str) -> None:
    """Refuse values that JSON cannot hold: too many, too deep, or with keys of another type."""
    waiting, count = [(values, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > DEEPEST or count > MOST_NODES:
            raise UserError(
                f"{name} has more than {DEEPEST} levels or {MOST_NODES} values: make it smaller"
            )
        if isinstance(value, int) and value.bit_length() > 256:
            raise UserError(
                f"{name} holds a number of {value.bit_length()} bits: write a smaller one"
            )
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str | int):
                    raise UserError(
                        f"{name}: {key} is a {type(key).__name__}, which cannot be a key: quote it"
                    )
            waiting += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += [(inner, depth + 1) for inner in value]


def _origin(error: ErrorDetails, name: str, overrides: Mapping[str, Any]) -> str:
    """Where a wrong value comes from: the file, an override, or both together."""
    wrong = ".".join(str(part) for part in error["loc"])
    inside = [key for key in overrides if not wrong or f"{key}.".startswith(f"{wrong}.")]
    for key in overrides:
        if f"{wrong}.".startswith(f"{key}."):
            return f"--set {key}"
    if inside and error["type"] == "extra_forbidden":
        return f"--set {inside[0]}"
    return f"{name} with --set {', '.join(inside[:3])}" if inside else name


def _most_specific(errors: list[ErrorDetails]) -> ErrorDetails:
    """The error of the first wrong key. Of a key with several forms: that of the form meant."""
    first = errors[0]["loc"][:2]
    return max((e for e in errors if e["loc"][:2] == first), key=lambda e: len(e["loc"]))


def _explain(error: ErrorDetails) -> str:
    # Pydantic adds type names to the location: `dict[int,...]`, `constrained-int`.
    location = [str(part) for part in error["loc"]]
    named = [part for part in location if "[" not in part and "constrained-" not in part]
    key = ".".join(named)
    given = json.dumps(error["input"], default=str)
    given = "not shown" if "://" in given else given  # it may hold credentials
    given = given if len(given) <= 60 else given[:57] + "..."
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {key}{_nearest(location)}"
        case "missing":
            return f"{key} is missing"
        case "value_error":
            text = error["msg"].removeprefix("Value error, ")
            return f"{key}: {text}" if key else text
        case _:
            return f"{key} is {given}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _nearest(location: list[str]) -> str:
    model: type[BaseModel] = Config
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    known = list(model.model_fields)
    close = difflib.get_close_matches(location[-1], known, n=1)
    return f": did you mean {close[0]}?" if close else f": the keys here are {', '.join(known)}"
