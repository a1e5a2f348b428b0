"""Read a parameter file: YAML, overrides, and a clear sentence for every mistake."""

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

from pipeline.config.fields import AUTO
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.teachers.inferred import complete_teacher, fitting_preset


def parse_range(text: str | None) -> range | None:
    """``0:8`` as the shards 0 to 7."""
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise UserError(f"--shards {text!r}: write FIRST:END, as in 0:8 for the first eight")
    return range(int(start), int(stop))


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read and check a parameter file, ``overrides`` (``section.key`` to value) laid over it.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is wrong.
    """
    if not path.is_file():
        raise UserError(f"there is no parameter file {path}: name one with --params")
    try:
        values = YAML(typ="safe", pure=True).load(path)
    except (YAMLError, ValueError) as error:  # such as a date of month 13
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections (teacher:, synthesis:, ...)")
    return parse_config(values, str(path), overrides)


def parse_config(
    values: Mapping[str, Any], name: str = "params", overrides: Mapping[str, Any] | None = None
) -> Config:
    """Check values that are already in memory, ``overrides`` laid over them; ``name`` says in
    errors where they came from.

    What the teacher's source knows itself is filled in, so that the result says everything.
    """
    changed = deepcopy(dict(values))
    for key, value in (overrides or {}).items():
        _set(changed, key, value)
    _check_keys(changed, name)
    values = complete_teacher(changed)
    try:
        # JSON mode is strict and yet takes lists for tuples and text for integer keys.
        return _with_preset(Config.model_validate_json(json.dumps(values, default=str)))
    except ValidationError as error:
        raise UserError(f"{name}: {_explain(_most_specific(error.errors()))}") from error


def _with_preset(config: Config) -> Config:
    objective = config.synthesis.objective
    if objective.preset != AUTO:
        return config
    shape = (config.teacher.input.height, config.teacher.input.width)
    preset = fitting_preset(config.teacher.source, config.teacher.arguments, shape)
    chosen = objective.model_copy(update={"preset": preset})
    synthesis = config.synthesis.model_copy(update={"objective": chosen})
    return config.model_copy(update={"synthesis": synthesis})


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``section.key=value`` strings, each value read as YAML."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set {pair!r}: write section.key=value")
        try:
            overrides[key] = YAML(typ="safe", pure=True).load(text)
        except (YAMLError, ValueError) as error:
            raise UserError(f"--set {key}: what follows = is not valid YAML") from error
    return overrides


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
    """YAML allows keys that no parameter has, such as dates."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, dict | list | tuple):
            _check_keys(value, name)
    for key in values if isinstance(values, dict) else ():
        if not isinstance(key, str | int):
            raise UserError(f"{name}: {key} is a {type(key).__name__}, which cannot be a key")


def _most_specific(errors: list[ErrorDetails]) -> ErrorDetails:
    """Of what is said of the first wrong key: where it may have several forms, the one meant."""
    first = errors[0]["loc"][:2]
    return max((e for e in errors if e["loc"][:2] == first), key=lambda e: len(e["loc"]))


def _explain(error: ErrorDetails) -> str:
    # Pydantic adds parts that name its own types, as in `dict[int,...]` or `constrained-int`.
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
