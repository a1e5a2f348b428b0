"""The PyTorch network of an ONNX graph: converted by onnx2torch, for batches of any size."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.errors import UserError
from pipeline.teachers.onnx_batches import BatchFinder, Measured, Reshape, module_kind
from pipeline.teachers.onnx_graph import GraphInput
from pipeline.teachers.origin import Origin
from pipeline.teachers.source import error_line


class OnnxNetwork(nn.Module):
    """Takes images ``[N, C, H, W]`` and returns logits ``[N, classes]``.

    Attributes:
        origin: The files that were read, and the notes and warnings for the user.
    """

    def __init__(self, body: nn.Module, channels_last: bool, origin: Origin) -> None:
        super().__init__()
        self.body = body
        self.channels_last = channels_last
        self.origin = origin

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits. Dimensions of size 1 after the classes are dropped."""
        if self.channels_last:
            images = images.permute(0, 2, 3, 1)
        logits: Tensor = self.body(images)
        return logits.flatten(1) if logits.ndim > 2 else logits


class Slice(nn.Module):
    """Takes a fixed slice of each dimension of a tensor."""

    def __init__(self, parts: tuple[slice, ...]) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, values: Tensor) -> Tensor:
        """Take the parts."""
        return values[self.parts]


class Pad(nn.Module):
    """Pads by fixed numbers, in the order of ``torch.nn.functional.pad``."""

    def __init__(self, pads: list[int], mode: str, value: float) -> None:
        super().__init__()
        self.pads, self.mode, self.value = pads, mode, value

    def forward(self, values: Tensor) -> Tensor:
        """Pad."""
        return nn.functional.pad(values, self.pads, self.mode, self.value)


def convert(model: Any, facts: GraphInput, place: str) -> fx.GraphModule:
    """Convert a graph whose shapes are inferred for one batch.

    Args:
        model: An ``onnx.ModelProto`` with safe node names.
        facts: Its input.
        place: The words that begin an error message and name the file.

    Returns:
        The network, for batches of any size.

    Raises:
        UserError: The graph cannot be converted, or takes batches of one size only.
    """
    import onnx2torch

    _register_gelu()
    try:
        with _quietly():
            body: fx.GraphModule = onnx2torch.convert(model).eval().float()
            if not hasattr(body, "initializers"):
                body.add_submodule("initializers", nn.Module())
            before = Measured(body)
            before.run(torch.zeros(facts.sides))
    except Exception as error:
        raise UserError(
            f"{place} cannot be converted by onnx2torch ({error_line(error):.200}): export it "
            "again with opset_version=17, or name the original network and its weights"
        ) from error
    _fold(body, before.constants)
    finder = BatchFinder(body, before.sizes, facts.batch is not None)
    try:
        with _quietly():
            finder.run(torch.zeros(2 * facts.sides[0], *facts.sides[1:]))
    except Exception as error:
        raise UserError(
            f"{place} takes only batches of {facts.sides[0]} ({error_line(error):.200}): export it "
            "again with a dynamic batch, as in dynamic_axes={'input': {0: 'batch'}}"
        ) from error
    for node, module in finder.modules.items():
        _replace(body, node, module, node.args[:1] if isinstance(module, Reshape) else node.args)
    _fold(body, finder.same(before))
    _fix_pads(body)
    _fix_slices(body)
    _delete_unused(body)
    return body


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Compute on the CPU without gradients, and without the warnings of onnx2torch's code."""
    with torch.no_grad(), torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _fold(body: fx.GraphModule, constants: dict[fx.Node, Tensor]) -> None:
    """Replace computations that no image changes by their results."""
    weights, present = body.get_submodule("initializers"), set(body.graph.nodes)
    for node, value in constants.items():
        if node not in present or node.op == "get_attr" or constants.keys() >= set(node.users):
            continue
        name = f"folded_{len(list(weights.buffers()))}"
        weights.register_buffer(name, value.clone())
        with body.graph.inserting_before(node):
            node.replace_all_uses_with(body.graph.get_attr(f"initializers.{name}"))
    body.graph.eliminate_dead_code()


def _fix_pads(body: fx.GraphModule) -> None:
    """Make the numbers of constant paddings part of the network, not tensors on its device."""
    for node in list(body.graph.nodes):
        if module_kind(body, node) != "OnnxPadDynamic" or node.kwargs:
            continue
        values = [_constant(body, each) for each in node.args[1:]]
        if any(value is None for value in values):
            continue
        numbers = [round(value) for value in values[0].reshape(-1).tolist()]
        half, mode = len(numbers) // 2, body.get_submodule(str(node.target)).mode
        pairs = [(numbers[at], numbers[half + at]) for at in reversed(range(half))]
        while pairs and pairs[-1] == (0, 0):
            pairs.pop()
        fill = float(values[1]) if len(values) > 1 else 0.0
        module = Pad([each for pair in pairs for each in pair], str(mode), fill)
        _replace(body, node, module, node.args[:1])


def _fix_slices(body: fx.GraphModule) -> None:
    """Make the numbers of constant slices part of the network."""
    for node in list(body.graph.nodes):
        if module_kind(body, node) != "OnnxSlice" or node.kwargs:
            continue
        values = [_constant(body, each) for each in node.args[1:]]
        if any(value is None for value in values):
            continue
        lists = [[int(each) for each in value.reshape(-1).tolist()] for value in values]
        starts, ends = lists[:2]
        axes = lists[2] if len(lists) > 2 else list(range(len(starts)))
        steps = lists[3] if len(lists) > 3 else [1] * len(starts)
        if min(steps) < 1 or min(axes) < 0:
            continue
        parts = [slice(None)] * (max(axes) + 1)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            parts[axis] = slice(start, end, step)
        _replace(body, node, Slice(tuple(parts)), node.args[:1])


def _replace(body: fx.GraphModule, node: fx.Node, module: nn.Module, inputs: Any) -> None:
    body.set_submodule(str(node.target), module)
    node.args, node.kwargs = inputs, {}


def _delete_unused(body: fx.GraphModule) -> None:
    body.graph.eliminate_dead_code()
    body.delete_all_unused_submodules()
    used = {str(node.target) for node in body.graph.nodes if node.op == "get_attr"}
    for name, _ in list(body.named_buffers()):
        if name.startswith("initializers.") and name not in used:
            delattr(body.initializers, name.removeprefix("initializers."))
    body.graph.lint()
    body.recompile()


def _constant(body: nn.Module, node: Any) -> Any:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    return body.get_buffer(str(node.target))


def _register_gelu() -> None:
    """Register a converter for the operator Gelu, which onnx2torch does not know."""
    from onnx2torch.node_converters import registry
    from onnx2torch.utils.common import OperationConverterResult, onnx_mapping_from_node

    wanted = registry.OperationDescription(domain="", operation_type="Gelu", version=17)
    if wanted in registry._CONVERTER_REGISTRY:
        return

    def gelu(node: Any, graph: Any) -> Any:
        module = nn.GELU(approximate=node.attributes.get("approximate", "none"))
        return OperationConverterResult(module, onnx_mapping_from_node(node))

    registry.add_converter(operation_type="Gelu", version=17)(gelu)
