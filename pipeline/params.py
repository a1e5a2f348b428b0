"""Read a parameter file: YAML, overrides, and one line for each mistake."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.teachers.inferred import FittingPreset, complete_teacher


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
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no parameter file {path}: name one with --params")
    try:
        values = YAML(typ="safe", pure=True).load(path)
    except (YAMLError, ValueError) as error:  # ValueError: such as a date of month 13
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections (teacher:, synthesis:, ...)")
    return parse_params(values, str(path), overrides)


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
    changed = deepcopy(dict(values))
    for key, value in (overrides or {}).items():
        _set(changed, key, value)
    _check_keys(changed, name)
    values = complete_teacher(changed)
    try:
        # JSON mode is strict, but accepts lists for tuples and text for integer keys.
        config = Config.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise UserError(f"{name}: {_explain(_most_specific(error.errors()))}") from error
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
        try:
            overrides[key] = YAML(typ="safe", pure=True).load(text)
        except (YAMLError, ValueError) as error:
            raise UserError(f"--set {key}: the text after = is not valid YAML") from error
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


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise UserError(f"--set {key}: {section} is a value, not a section")
        values = inner
    values[last] = value


def _check_keys(values: Any, name: str) -> None:
    """Refuse keys of a type that only YAML allows, such as dates."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, dict | list | tuple):
            _check_keys(value, name)
    for key in values if isinstance(values, dict) else ():
        if not isinstance(key, str | int):
            raise UserError(
                f"{name}: {key} is a {type(key).__name__}, which cannot be a key: quote it"
            )


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
