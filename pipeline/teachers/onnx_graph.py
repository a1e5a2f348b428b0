"""Facts of an ONNX graph: its input, its output, and normalisation at its start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError

LAYOUTS = ("nchw", "nhwc")
_TO_NCHW = [0, 3, 1, 2]
_FEW = 4  # most channels of an image, if the layout must be guessed from the sizes
_COPIES = ("Cast", "Identity")
_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
_NORMALISATIONS = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LRN",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphInput:
    """The images that a graph takes.

    Attributes:
        name: The name of the input.
        batch: The number of images, where the file fixes it.
        channels: Channels of an image.
        height: Height in pixels.
        width: Width in pixels.
        channels_last: Whether the graph takes ``[N, H, W, C]``, as TensorFlow does.
        whole: Whether the graph takes whole numbers of 0 to 255.
    """

    name: str
    batch: int | None
    channels: int
    height: int
    width: int
    channels_last: bool
    whole: bool

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """The input's dimensions for one batch, in the order of the graph."""
        batch = self.batch or 1
        if self.channels_last:
            return (batch, self.height, self.width, self.channels)
        return (batch, self.channels, self.height, self.width)


def graph_input(graph: Any, arguments: Mapping[str, Any], place: str) -> GraphInput:
    """Read the channels, size and layout of the images that a graph takes.

    Args:
        graph: An ``onnx.GraphProto``.
        arguments: ``layout``, ``height`` and ``width``, if the file does not state them.
        place: The words that begin an error message and name the file.

    Raises:
        UserError: The graph has several inputs or outputs, or its input is no batch of images.
    """
    from onnx import TensorProto

    weights = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    _check_one(inputs, "inputs", "name a classifier of single images", place)
    advice = "save a file with the logits alone (onnx.utils.extract_model)"
    _check_one(graph.output, "outputs", advice, place)
    kind = inputs[0].type.tensor_type
    dims = [int(dim.dim_value) for dim in kind.shape.dim]
    if len(dims) != 4:
        raise UserError(
            f"{place} takes an input of {len(dims)} dimensions, but a batch of images has 4"
        )
    element = TensorProto.DataType.Name(kind.elem_type)
    if element not in (*_FLOATS, "UINT8"):
        raise UserError(f"{place} takes numbers of the type {element}, not images")
    last = _is_channels_last(graph, inputs[0].name, dims, _layout(arguments, place))
    height, width, channels = dims[1:] if last else (*dims[2:], dims[1])
    height = height or int(arguments.get("height", 0))
    width = width or int(arguments.get("width", 0))
    if min(height, width, channels) < 1:
        raise UserError(
            f"{place} fixes no size of its images ({_shown(kind.shape.dim)}): set "
            "teacher.arguments, as in {height: 224, width: 224}, or export it with a fixed size"
            if channels
            else f"{place} fixes no number of channels: export it again with a fixed input shape"
        )
    return GraphInput(
        name=inputs[0].name,
        batch=dims[0] or None,
        channels=channels,
        height=height,
        width=width,
        channels_last=last,
        whole=element == "UINT8",
    )


def scaling(graph: Any, facts: GraphInput) -> tuple[float, float] | None:
    """The mean and std of pixels / 255 that a graph takes, if the graph itself shows them.

    A graph that begins with its own normalisation, ``(x - a) / b``, takes values of 0 to 1 or of
    0 to 255. The size of ``a`` and ``b`` tells which.

    Args:
        graph: An ``onnx.GraphProto``.
        facts: Its input.

    Returns:
        ``(0, 1)`` or ``(0, 1 / 255)``; None if the graph does not show them.
    """
    if facts.whole:
        return 0.0, 1 / 255
    found = _affine(graph, facts)
    if found is None:
        return None
    factor, offset = (float(np.abs(values).max()) for values in found)
    if factor <= 0.1 or offset > 10:
        return 0.0, 1 / 255
    return (0.0, 1.0) if factor >= 0.5 else None


def output_classes(graph: Any) -> int | None:
    """The number of classes, where the file states the size of its output."""
    dims = [int(dim.dim_value) for dim in graph.output[0].type.tensor_type.shape.dim]
    known = len(dims) >= 2 and dims[1] > 0 and all(side == 1 for side in dims[2:])
    return dims[1] if known else None


def is_folded(graph: Any) -> bool:
    """Whether the graph has convolutions but no layer that normalises."""
    kinds = {node.op_type for node in graph.node}
    return "Conv" in kinds and kinds.isdisjoint(_NORMALISATIONS)


def _check_one(values: Any, what: str, advice: str, place: str) -> None:
    if len(values) != 1:
        names = ", ".join(f"{each.name:.40}" for each in list(values)[:5]) or "none"
        raise UserError(f"{place} has {len(values)} {what} ({names}): {advice}")


def _layout(arguments: Mapping[str, Any], place: str) -> str | None:
    if unknown := set(arguments) - {"layout", "height", "width"}:
        raise UserError(
            f"teacher.arguments has {sorted(unknown)[0]}, but an ONNX file takes only layout, "
            "height and width"
        )
    layout = arguments.get("layout")
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"teacher.arguments: layout is {layout!r}: write {' or '.join(LAYOUTS)}")
    for side in ("height", "width"):
        value = arguments.get(side, 1)
        if not isinstance(value, int) or not 1 <= value <= 4096:
            raise UserError(f"teacher.arguments: {side} is {value!r}: write 1 to 4096 pixels")
    return layout


def _is_channels_last(graph: Any, name: str, dims: list[int], layout: str | None) -> bool:
    """Whether the channels come last, by ``layout``, by the first operators, or by the sizes."""
    if layout is not None:
        return layout == "nhwc"
    for node in _start(graph, name):
        if node.op_type == "Transpose":
            return _permutation(node) == _TO_NCHW
        if node.op_type == "Conv":
            return False
    return 0 < dims[3] <= _FEW and not 0 < dims[1] <= _FEW


def _start(graph: Any, name: str) -> list[Any]:
    """The first nodes of a graph, as long as they form a chain without other changing inputs."""
    chain: list[Any] = []
    weights = {each.name for each in graph.initializer}
    value = name
    while len(chain) < len(graph.node):
        users = [node for node in graph.node if value in node.input]
        if len(users) != 1:
            break
        chain.append(users[0])
        others = [each for each in users[0].input if each and each != value]
        if users[0].op_type == "Conv" or not weights.issuperset(others):
            break
        value = users[0].output[0]
    return chain


def _affine(graph: Any, facts: GraphInput) -> tuple[Any, Any] | None:
    """Factor and offset of the affine function at the start of a graph; None if there is none."""
    from onnx import numpy_helper

    weights = {each.name: each for each in graph.initializer}
    factor, offset = np.ones(1), np.zeros(1)
    found = False
    value = facts.name
    for node in _start(graph, facts.name):
        kind, names = node.op_type, list(node.input)
        if kind in ("Add", "Sub", "Mul", "Div") and len(names) == 2:
            other = names[1] if names[0] == value else names[0]
            constant = numpy_helper.to_array(weights[other]).astype(np.float64).reshape(-1)
            backwards = names[0] != value and kind in ("Sub", "Div")
            if constant.size not in (1, facts.channels) or backwards:
                break
            factor, offset = _step(kind, factor, offset, constant)
            found = True
        elif kind not in (*_COPIES, "Transpose"):
            break
        value = node.output[0]
    return (factor, offset) if found else None


def _step(kind: str, factor: Any, offset: Any, constant: Any) -> tuple[Any, Any]:
    if kind == "Add":
        return factor, offset + constant
    if kind == "Sub":
        return factor, offset - constant
    scale = constant if kind == "Mul" else 1 / np.where(constant == 0, np.nan, constant)
    return factor * scale, offset * scale


def _permutation(node: Any) -> list[int]:
    return next((list(each.ints) for each in node.attribute if each.name == "perm"), [])


def _shown(dims: Any) -> str:
    return "x".join(str(dim.dim_value or dim.dim_param or "?")[:20] for dim in dims)
