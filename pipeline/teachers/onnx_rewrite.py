"""Rewrite an ONNX graph so that onnx2torch can convert it: same logits, fewer kinds of operators.

All functions change the graph that they are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError
from pipeline.teachers.onnx_graph import GraphInput

OPSET = 17  # the last version of the operators that onnx2torch knows
_SOFTMAX = ("Softmax", "LogSoftmax")
_COPIES = ("Identity", "Cast")
_AXES_WERE_AN_ATTRIBUTE = tuple(
    f"Reduce{name}"
    for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)
_NEWER = ("Gelu",)  # newer than OPSET, and registered by :mod:`pipeline.teachers.onnx_network`
_CHANGED = ("Resize", "GroupNormalization")  # before, other operators had these names


def simplify(model: Any, place: str) -> None:
    """Make constants plain, all numbers float32, and statistics fixed.

    Args:
        model: An ``onnx.ModelProto`` without control flow.
        place: The words that begin an error message and name the file.

    Raises:
        UserError: The model has sparse tensors.
    """
    graph = model.graph
    if graph.sparse_initializer:
        raise UserError(f"{place} has sparse tensors: save it with plain ones")
    del graph.value_info[:]  # the sizes are inferred later
    _plain_constants(graph)
    _float32(graph)
    for node in graph.node:
        if node.op_type == "BatchNormalization":  # exported in training mode
            del node.output[1:]
            _drop(node, "training_mode")
        if node.op_type == "Reshape":  # allowzero only concerns empty tensors
            _drop(node, "allowzero")


def take_softmax_off(graph: Any, place: str) -> str:
    """Let the graph end before a final softmax.

    Args:
        graph: An ``onnx.GraphProto``.
        place: The words that begin an error message and name the file.

    Returns:
        The name of the operator that was taken off, or an empty text.

    Raises:
        UserError: The graph ends in a sigmoid.
    """
    makers = {name: node for node in graph.node for name in node.output}
    last = makers.get(graph.output[0].name)
    while last is not None and last.op_type in _COPIES:
        last = makers.get(last.input[0])
    if last is not None and last.op_type == "Sigmoid":
        raise UserError(
            f"{place} ends in a sigmoid, as networks with several labels an image do. A teacher "
            "needs images with one label each. If the network was trained with one label an image, "
            "save a file that ends before the sigmoid"
        )
    if last is None or last.op_type not in _SOFTMAX:
        return ""
    graph.output[0].name = last.input[0]
    return str(last.op_type)


def lower_opset(model: Any, place: str) -> None:
    """Write newer operators as those of ``OPSET``.

    Args:
        model: An ``onnx.ModelProto``.
        place: The words that begin an error message and name the file.

    Raises:
        UserError: An operator has no older form, or none that onnx2torch converts.
    """
    from onnx2torch.node_converters.registry import get_converter

    opset = next(o for o in model.opset_import if o.domain in ("", "ai.onnx"))
    constants = {each.name: each for each in model.graph.initializer}
    unknown = set()
    for node in model.graph.node:
        newer = opset.version > OPSET
        if newer and (node.op_type in _CHANGED or not _lowered(node, constants)):
            unknown.add(node.op_type)
        try:
            version = min(opset.version, OPSET)
            if node.op_type not in _NEWER:
                get_converter(node.op_type, version)
        except NotImplementedError:
            unknown.add(node.op_type)
    if unknown:
        raise UserError(
            f"{place} has operators that onnx2torch cannot convert, of opset {opset.version}: "
            f"{', '.join(f'{name:.40}' for name in sorted(unknown)[:8])}. Export it again with "
            f"opset_version={OPSET}, or name the original network and its weights"
        )
    opset.version = min(opset.version, OPSET)


def fix_shapes(model: Any, facts: GraphInput) -> Any:
    """Fix the input's size and type, infer all other sizes, and write "same" padding as numbers.

    Args:
        model: An ``onnx.ModelProto``.
        facts: Its input.

    Returns:
        The model with the inferred sizes.
    """
    from onnx import TensorProto
    from onnx.shape_inference import infer_shapes

    graph = model.graph
    image = next(each for each in graph.input if each.name == facts.name)
    image.type.tensor_type.elem_type = TensorProto.FLOAT
    for dim, side in zip(image.type.tensor_type.shape.dim, facts.sides, strict=True):
        dim.dim_value = side
    graph.output[0].type.tensor_type.ClearField("shape")
    sized = infer_shapes(model, data_prop=True)
    for _ in range(sum(_attribute(node, "auto_pad") is not None for node in graph.node)):
        if not _pad_one(sized.graph):
            break
        sized = infer_shapes(sized, data_prop=True)
    return sized


def prune(graph: Any) -> None:
    """Delete nodes whose results nobody uses, and name the others by their operator and number.

    The names become code in PyTorch's graph module, so a name from the file is never used.
    """
    wanted = {each.name for each in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    kept.reverse()
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
        node.domain = ""


def _plain_constants(graph: Any) -> None:
    """Turn constants and copies of weights into weights."""
    from onnx import helper, numpy_helper

    weights = {each.name: each for each in graph.initializer}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = renamed.get(name, name)
        if node.op_type == "Identity" and node.input[0] in weights:
            renamed[node.output[0]] = node.input[0]
        elif node.op_type == "Constant" and node.attribute[0].name.startswith("value"):
            value = helper.get_attribute_value(node.attribute[0])
            if not node.attribute[0].HasField("t"):
                import numpy as np

                whole = node.attribute[0].name.startswith("value_int")
                value = numpy_helper.from_array(np.array(value, "int64" if whole else "float32"))
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            weights[tensor.name] = tensor
        else:
            kept.append(node)
    for node in kept:
        for at, name in enumerate(node.input):
            node.input[at] = renamed.get(name, name)
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def _float32(graph: Any) -> None:
    """Compute in float32 what the file computes in another precision."""
    from onnx import TensorProto, numpy_helper

    others = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    for tensor in graph.initializer:
        if tensor.data_type in others:
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in others:
                attribute.i = TensorProto.FLOAT
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type in others:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _lowered(node: Any, constants: Mapping[str, Any]) -> bool:
    """Write a node of a newer opset as one of ``OPSET``; False if that is impossible."""
    from onnx import defs, helper, numpy_helper

    if node.op_type in _AXES_WERE_AN_ATTRIBUTE and len(node.input) > 1:
        if node.input[1] not in constants:
            return False
        axes = numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
        del node.input[1:]
        node.attribute.append(helper.make_attribute("axes", axes))
    if node.op_type == "Split":
        _drop(node, "num_outputs")
    if node.op_type == "Pad" and len(node.input) > 3:
        return False
    if node.op_type == "AveragePool" and set(_attribute(node, "dilations") or [1]) != {1}:
        return False
    return node.op_type in _NEWER or defs.has(node.op_type, max_inclusive_version=OPSET)


def _pad_one(graph: Any) -> bool:
    """Write the first "same" padding whose input has a known size as numbers."""
    from onnx import helper

    sizes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.value_info]
    }
    shapes = {each.name: list(each.dims) for each in graph.initializer}
    for node in graph.node:
        mode = _attribute(node, "auto_pad")
        if mode is None:
            continue
        sides = sizes.get(node.input[0], [])[2:]
        kernel = _attribute(node, "kernel_shape") or shapes.get(node.input[1], [])[2:]
        same = mode in (b"SAME_UPPER", b"SAME_LOWER")
        if same and (len(sides) != len(kernel) or not all(sides)):
            continue
        _drop(node, "auto_pad")
        if same:
            strides = _attribute(node, "strides") or [1] * len(kernel)
            dilations = _attribute(node, "dilations") or [1] * len(kernel)
            total = [
                max(0, (-(-side // stride) - 1) * stride + (size - 1) * dilation + 1 - side)
                for side, size, stride, dilation in zip(
                    sides, kernel, strides, dilations, strict=True
                )
            ]
            small, large = [each // 2 for each in total], [(each + 1) // 2 for each in total]
            pads = small + large if mode == b"SAME_UPPER" else large + small
            _drop(node, "pads")
            node.attribute.append(helper.make_attribute("pads", pads))
        return True
    return False


def _attribute(node: Any, name: str) -> Any:
    from onnx import helper

    found = next((each for each in node.attribute if each.name == name), None)
    return None if found is None else helper.get_attribute_value(found)


def _drop(node: Any, name: str) -> None:
    kept = [each for each in node.attribute if each.name != name]
    copies = [type(each).FromString(each.SerializeToString()) for each in kept]
    del node.attribute[:]
    node.attribute.extend(copies)
