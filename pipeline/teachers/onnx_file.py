"""Read an ONNX file and its external data, each once, and refuse files that cannot be teachers.

Nothing in the file is executed: it is a protocol buffer of tensors and operator names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pipeline.errors import UserError
from pipeline.local_files import read_small
from pipeline.teachers.checkpoints import WeightsFile
from pipeline.teachers.file_kinds import foreign_kind, is_onnx
from pipeline.teachers.source import error_line

MOST = 2**31 - 1  # bytes of a protocol buffer; also of the file and its external data together
_QUANTISED = ("QuantizeLinear", "QLinear", "ConvInteger", "MatMulInteger")
_CONTROL = ("If", "Loop", "Scan", "SequenceMap")
_USUAL_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """The content of an ONNX file.

    Attributes:
        model: An ``onnx.ModelProto`` that holds all its tensors.
        files: The file and its external data, with the digests of the bytes read.
    """

    model: Any
    files: tuple[WeightsFile, ...]


def read_onnx(path: Path, role: str) -> OnnxFile:
    """Read an ONNX file and check that it is one classifier of float numbers.

    Args:
        path: The file. Its external data must lie in the same folder.
        role: The section of the parameters that error messages name.

    Raises:
        UserError: The file is missing, too large, damaged, quantised, or of another kind.
    """
    import onnx

    place = f"{role}.source: {path}"
    if not path.is_file():
        raise UserError(f"{role}.source: there is no file {path}")
    data = _bytes(path, MOST, place)
    if not is_onnx(data) and (kind := foreign_kind(data, "")) is not None:
        raise UserError(f"{place} {kind}")
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:
        raise UserError(
            f"{place} is damaged, truncated or no ONNX file: copy or download it again"
        ) from error
    files = [WeightsFile(path.name, hashlib.sha256(data).hexdigest())]
    files += _inline_external(model, path, MOST - len(data), place)
    if model.functions:
        raise UserError(
            f"{place} has local functions, as older exporters write: replace them by "
            "onnx.inliner.inline_local_functions(model), save the result and name that file"
        )
    check_operators(model, place)
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise UserError(
            f"{place} is no valid ONNX model, so it is damaged, truncated or newer than the "
            f"package onnx {onnx.__version__} ({error_line(error)})"
        ) from error
    return OnnxFile(model, tuple(files))


def check_operators(model: Any, place: str) -> None:
    """Refuse kinds of operators that no conversion can help.

    Args:
        model: An ``onnx.ModelProto``.
        place: The words that begin an error message and name the file.

    Raises:
        UserError: The model is quantised, branches, or uses operators outside of ONNX.
    """
    nodes = list(model.graph.node)
    if not nodes:
        raise UserError(f"{place} has no operators, so it is damaged: copy or export it again")
    for node in nodes:
        if any(part in node.op_type for part in _QUANTISED):
            raise UserError(
                f"{place} is quantised ({node.op_type:.40}), and rounding has no gradient: name "
                "the float model that it was made from"
            )
    for node in nodes:
        if node.op_type in _CONTROL or any(each.HasField("g") for each in node.attribute):
            raise UserError(
                f"{place} has control flow ({node.op_type:.40}), which cannot be converted: export "
                "the network for one fixed input size, without branches in its forward pass"
            )
    if foreign := sorted({n.domain for n in nodes if n.domain not in _USUAL_DOMAINS}):
        raise UserError(
            f"{place} has operators outside of the ONNX standard (domain {foreign[0]:.40}), as "
            "ONNX Runtime writes into optimised files: name the file from before the optimisation"
        )


def _inline_external(model: Any, path: Path, most: int, place: str) -> list[WeightsFile]:
    """Put external data into the model's own tensors; returns the files that were read."""
    contents: dict[str, bytes] = {}
    files: list[WeightsFile] = []
    for tensor in _tensors(model):
        if tensor.data_location != type(tensor).EXTERNAL:
            continue
        facts = {entry.key: entry.value for entry in tensor.external_data}
        name = facts.get("location", "")
        if PurePath(name).name != name or "\\" in name or name in ("", ".."):
            raise UserError(
                f"{place} names external data in another folder ({name[:60]!r}): put the data "
                "into the folder of the file, or save the model as one file"
            )
        if name not in contents:
            contents[name] = _external(path.with_name(name), most, place)
            most -= len(contents[name])
            files.append(WeightsFile(name, hashlib.sha256(contents[name]).hexdigest()))
        try:
            start = int(facts.get("offset", 0))
            length = int(facts.get("length", len(contents[name]) - start))
        except ValueError:
            start, length = -1, -1
        if start < 0 or length < 0 or start + length > len(contents[name]):
            raise UserError(
                f"{place}: its external data {name} is shorter than the file says, so it is "
                "truncated or of another export: copy both files again"
            )
        tensor.raw_data = contents[name][start : start + length]
        tensor.data_location = type(tensor).DEFAULT
        del tensor.external_data[:]
    return files


def _external(path: Path, most: int, place: str) -> bytes:
    if path.is_symlink() or not path.is_file():
        what = "is a link" if path.is_symlink() else "is missing"
        raise UserError(
            f"{place} keeps its weights in the file {path.name}, which {what}: copy it into the "
            "same folder, or save the model as one file"
        )
    return _bytes(path, most, f"{place}: its external data {path.name}")


def _bytes(path: Path, most: int, place: str) -> bytes:
    try:
        data = read_small(path, most)
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error_line(error)}") from error
    if data is None:
        raise UserError(f"{place} is no plain file of less than 2 GiB: name a smaller model")
    return data


def _tensors(model: Any) -> Iterator[Any]:
    """The tensors of the graph: its initializers and the values of constants."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
