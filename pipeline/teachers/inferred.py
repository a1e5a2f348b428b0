"""Fill in what a parameter file leaves out and the teacher's source knows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.teacher import TeacherConfig
from pipeline.device.torch_state import restored_torch_state
from pipeline.errors import UserError
from pipeline.local_files import read_local
from pipeline.objective.bn_statistics import batchnorm_layers
from pipeline.objective.presets import LARGE, MEDIUM
from pipeline.teachers.networks import build_network
from pipeline.teachers.registry import find_source
from pipeline.teachers.source import Description
from pipeline.teachers.user_code import same_folder

MOST_NAMES_BYTES = 2**26  # of the file teacher.class_names
_INPUT = ("channels", "height", "width", "mean", "std", "interpolation")


def complete_teacher(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the section ``teacher`` of a parameter file where its source knows more.

    The source's metadata supplies what is missing of ``input``, ``classes``, ``class_names`` and
    ``license``; the network itself supplies the number of classes. A given value is never changed.
    Where ``classes`` and ``input`` are given, nothing is asked and no network is built. A teacher
    without labels has 0 classes, and no student.

    Args:
        values: The sections. ``teacher.class_names`` may name a file: JSON, or one name a line.

    Returns:
        A copy with the section ``teacher`` filled in. A section of a wrong form is left alone.

    Raises:
        UserError: The source or the file of names cannot be read.
    """
    section = values.get("teacher")
    if not isinstance(section, dict) or not isinstance(section.get("source"), str):
        return dict(values)
    teacher = dict(section)
    if teacher.get("labels") == "none":
        values = {"student": {"source": teacher["source"]}, **values}
        teacher["classes"] = teacher.get("classes") or 0
    if isinstance(teacher.get("class_names"), str):
        teacher["class_names"] = read_names(Path(teacher["class_names"]))
    given = teacher.get("input") or {}
    if not isinstance(given, dict) or not isinstance(teacher.get("arguments") or {}, dict):
        return dict(values)
    if teacher.get("classes") is None or any(given.get(key) is None for key in _INPUT[:-1]):
        _fill(teacher, dict(given))
    return {**values, "teacher": teacher}


def check_digest(config: TeacherConfig, section: str) -> None:
    """Check that an expected digest has a file: that of the weights, or one that holds all.

    Args:
        config: The section.
        section: Its name, which begins the error message.

    Raises:
        UserError: There is none.
    """
    kind, name = find_source(config.source)
    if config.sha256 is not None and config.weights is None and kind.model_file(name) is None:
        raise UserError(
            f"{section}: sha256 is the digest of a weights file, but weights is null: name the "
            "file, or set sha256 to null"
        )


@dataclass
class FittingPreset:
    """Chooses the preset that fits a teacher, when it is called for the first time.

    The answer is kept, also in copies that are sent to workers, so that a process builds the
    network for it at most once.
    """

    source: str
    arguments: Mapping[str, Any]
    shape: tuple[int, int]
    _name: str | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, teacher: TeacherConfig) -> FittingPreset:
        return cls(teacher.source, teacher.arguments, (teacher.input.height, teacher.input.width))

    def __call__(self) -> str:
        if self._name is None:
            self._name = fitting_preset(self.source, self.arguments, self.shape)
        return self._name


def fitting_preset(source: str, arguments: Mapping[str, Any], shape: tuple[int, int]) -> str:
    """The preset for a teacher with or without BatchNorm, and for images of this size.

    Args:
        source: The teacher's source. One that cannot be built counts as having BatchNorm:
            loading the teacher reports the error.
        arguments: The arguments of the source.
        shape: Height and width of the teacher's input in pixels.
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
    """Read class names from a JSON list or from a text file with one name a line.

    Raises:
        UserError: The file cannot be read, or holds no list.
    """
    try:
        text = read_local(path, MOST_NAMES_BYTES).decode("utf-8-sig")
        names = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"teacher.class_names: {path} cannot be read: {_reason(error)}") from error
    if not isinstance(names, list):
        raise UserError(f"teacher.class_names: {path} must hold a list of names")
    return [str(name) for name in names]


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)


def _fill(teacher: dict[str, Any], given: dict[str, Any]) -> None:
    arguments = teacher.get("arguments") or {}
    weights = teacher.get("weights")
    kind, name = find_source(teacher["source"])
    known = kind.describe(name, arguments, weights if isinstance(weights, str) else None)
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
        count = len(names) if isinstance(names, list) else known.classes or _count_classes(teacher)
        if count is not None:
            teacher["classes"] = count
    if names is None and known.class_names and len(known.class_names) == teacher.get("classes"):
        teacher["class_names"] = list(known.class_names)


def _count_classes(teacher: Mapping[str, Any]) -> int | None:
    """The number of outputs of the network, if its input is known."""
    sides = [teacher["input"].get(key) for key in ("channels", "height", "width")]
    if not all(isinstance(side, int) and 0 < side <= 4096 for side in sides):
        return None
    arguments = teacher.get("arguments") or {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build_network(teacher["source"], arguments, "teacher").eval()
        try:
            with same_folder("teacher"):
                logits = network(torch.zeros(1, *sides))
        except UserError:
            raise
        except Exception:  # the check of the loaded teacher reports it
            return None
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserError("the teacher must return logits [batch, classes]")
    return logits.shape[1]


def _skeleton(source: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network without memory for its weights, where its factory supports the meta device."""
    generators = torch.random.fork_rng(devices=[])
    with restored_torch_state(), generators, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loading weights on the meta device warns
        try:
            with torch.device("meta"):
                return build_network(source, arguments, "teacher")
        except UserError:
            return build_network(source, arguments, "teacher")
