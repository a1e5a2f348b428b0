"""What a parameter file may leave to the teacher itself: its input, its classes, an objective."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.objective.bn_statistics import batchnorm_layers
from pipeline.teachers.descriptions import Description, describe_source
from pipeline.teachers.networks import build_network

MEDIUM, LARGE = 32, 96  # pixels a side from which objectives of these names fit
_INPUT = ("channels", "height", "width", "mean", "std", "interpolation")


def complete_teacher(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` of a parameter file with ``teacher`` filled in where its source knows more.

    Asks the source's metadata for what is missing of ``input``, ``classes``, ``class_names`` and
    ``license``, and the network itself for the number of classes. A value given stays as it is;
    where all are given, or the section is wrong anyway, nothing is asked. ``class_names`` may name
    a file: JSON, or one name a line.

    Raises:
        UserError: the source, or the file of names, cannot be read.
    """
    section = values.get("teacher")
    if not isinstance(section, dict) or not isinstance(section.get("source"), str):
        return dict(values)
    teacher = dict(section)
    if isinstance(teacher.get("class_names"), str):
        teacher["class_names"] = read_names(Path(teacher["class_names"]))
    given = teacher.get("input") or {}
    if not isinstance(given, dict) or not isinstance(teacher.get("arguments") or {}, dict):
        return dict(values)
    if teacher.get("classes") is None or any(given.get(key) is None for key in _INPUT[:-1]):
        _fill(teacher, dict(given))
    return {**values, "teacher": teacher}


def fitting_preset(source: str, arguments: Mapping[str, Any], shape: tuple[int, int]) -> str:
    """The objective for a teacher with or without BatchNorm, and for images of this size.

    A source that cannot be built is for the caller to complain about: it will build it too.
    """
    try:
        network: nn.Module | None = _skeleton(source, arguments)
    except UserError:
        network = None
    name = "without-batchnorm" if network and not batchnorm_layers(network) else "normalised"
    if min(shape) >= LARGE:
        return f"{name}-large"
    return f"{name}-medium" if min(shape) >= MEDIUM and name == "normalised" else name


def read_names(path: Path) -> list[str]:
    """Class names from a JSON list or a text file with one name a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"teacher.class_names: {path} cannot be read: {error}") from error
    if not isinstance(names, list):
        raise UserError(f"teacher.class_names: {path} must hold a list of names")
    return [str(name) for name in names]


def _fill(teacher: dict[str, Any], given: dict[str, Any]) -> None:
    arguments = teacher.get("arguments") or {}
    weights = teacher.get("weights")
    known = describe_source(
        teacher["source"], arguments, weights if isinstance(weights, str) else None
    )
    for key in _INPUT:
        value = asdict(known)[key]
        if given.get(key) is None and value is not None:
            given[key] = value
    teacher["input"] = given
    if teacher.get("license") is None and known.license is not None:
        teacher["license"] = known.license
    _fill_classes(teacher, known)


def _fill_classes(teacher: dict[str, Any], known: Description) -> None:
    names = teacher.get("class_names")
    if teacher.get("classes") is None:
        count = len(names) if isinstance(names, list) else _count_classes(teacher)
        if count is not None:
            teacher["classes"] = count
    if names is None and known.class_names and len(known.class_names) == teacher.get("classes"):
        teacher["class_names"] = list(known.class_names)


def _count_classes(teacher: Mapping[str, Any]) -> int | None:
    """As many as the network has outputs, if its input is known."""
    sides = [teacher["input"].get(key) for key in ("channels", "height", "width")]
    if not all(isinstance(side, int) and 0 < side <= 4096 for side in sides):
        return None
    arguments = teacher.get("arguments") or {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build_network(teacher["source"], arguments, "teacher").eval()
        try:
            logits = network(torch.zeros(1, *sides))
        except Exception:  # the check of the whole teacher says what is wrong with this input
            return None
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserError("the teacher must return logits [batch, classes]")
    return logits.shape[1]


def _skeleton(source: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network without memory for its weights, where its factory can do that."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a factory that fills in its weights here does so in vain
        try:
            with torch.device("meta"):
                return build_network(source, arguments, "teacher")
        except UserError:
            return build_network(source, arguments, "teacher")
