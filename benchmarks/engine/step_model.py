"""Count the work of one inversion step: floating-point operations and bytes of each kernel.

The counts follow from the shapes of the network's maps and from the number format. They describe
a plan of kernels that a compiler of today could make:

- A convolution is one kernel, and its input gradient is another. The weights are frozen, so no
  weight gradient is computed. The last linear layer counts as a convolution.
- All operations between two convolutions are one fused kernel: BatchNorm, ReLU, shortcut, pooling.
  Its backward is one kernel too. It needs one saved map for the ReLU.
- The sums of R_feature are one kernel for each BatchNorm layer, which reads the layer's input.
- The gradient of R_feature is added inside the fused backward kernel. Its own cost is the saved
  maps that this kernel would not read otherwise.
- Random view, losses on the pixels, and Adam with clamping are fused kernels in float32.

A kernel reads each input once and writes each output once. A fused operation counts as one
floating-point operation an element, a BatchNorm as two. Losses on logits and on the statistics of
channels are left out, because they are small.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

FORWARD = "convolutions, forward"
INPUT_GRADIENT = "convolutions, input gradient"
ELEMENTWISE = "BatchNorm, ReLU, shortcut: forward"
ELEMENTWISE_BACK = "BatchNorm, ReLU, shortcut: backward"
SUMS = "R_feature: sums"
SUMS_BACK = "R_feature: gradients"
LOSSES = "losses on the pixels: R_TV and R_l2"
UPDATE = "random view, Adam, clamping"
PARTS = (FORWARD, INPUT_GRADIENT, ELEMENTWISE, ELEMENTWISE_BACK, SUMS, SUMS_BACK, LOSSES, UPDATE)

FLOAT32 = 4  # bytes
# Operations for one element of a map or of the images.
OF_SUMS, OF_SUMS_BACK = 4, 3  # subtract, add, square and add; multiply, add, add
OF_LOSSES, OF_LOSSES_BACK = 14, 18  # four differences squared and summed, R_l2; their gradients
OF_ADAM = 14


@dataclass(frozen=True, slots=True)
class Layer:
    """One map that is stored in memory, and how it is computed from other stored maps.

    Attributes:
        name: The name of the map.
        size: The number of elements of the map.
        inputs: The stored maps that are read, with the number of elements that are read.
        products: The multiply-adds of a convolution or linear layer; 0 for a fused kernel.
        weights: The number of weights of a convolution or linear layer.
        operations: The operations of a fused kernel.
        normalised: The stored maps that are inputs of the kernel's BatchNorm layers.
    """

    name: str
    size: int
    inputs: dict[str, int]
    products: int = 0
    weights: int = 0
    operations: int = 0
    normalised: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kernel:
    """The work of one kernel.

    Attributes:
        part: The kind of work, one of :data:`PARTS`.
        layer: The name of the layer's map.
        matrix: Floating-point operations of matrix products.
        vector: Other floating-point operations.
        reads: The bytes that are read of each array.
        writes: The bytes that are written of each array.
    """

    part: str
    layer: str
    matrix: int = 0
    vector: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())


def network_layers(network: nn.Module, shape: Sequence[int], batch: int) -> list[Layer]:
    """Trace a network and list its stored maps in the order in which they are computed.

    Stored are the outputs and inputs of convolutions and linear layers, and the inputs of BatchNorm
    layers. The first layer is the network's input and has no inputs.

    Args:
        network: A network of Conv2d, Linear and BatchNorm2d layers that ``torch.fx`` can trace.
        shape: Channels, height and width of an image.
        batch: The number of images.
    """
    # Tensors on the device "meta" have shapes and no values, so nothing is computed here.
    traced = fx.symbolic_trace(copy.deepcopy(network).eval().to("meta"))
    ShapeProp(traced).propagate(torch.empty(batch, *shape, device="meta"))
    nodes = [node for node in traced.graph.nodes if node.op not in ("output", "get_attr")]
    stored: set[fx.Node] = set()
    for node in nodes:
        module = _module(node)
        if node.op == "placeholder":
            stored.add(node)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            stored |= {node, node.all_input_nodes[0]}
        elif isinstance(module, nn.BatchNorm2d):
            stored.add(node.all_input_nodes[0])
    return [_layer(node, stored) for node in nodes if node in stored]


def step_kernels(layers: Sequence[Layer], element: int) -> list[Kernel]:
    """List the kernels of one step in the order in which they run.

    Args:
        layers: The layers of :func:`network_layers`.
        element: Bytes of an element of the network's maps: 2 in bfloat16, 4 in float32.
    """
    image, *rest = layers
    pixels, entered = FLOAT32 * image.size, {image.name: element * image.size}
    kernels = [
        Kernel(UPDATE, "view", reads={"images": pixels}, writes={"view": pixels}),
        Kernel(LOSSES, "losses", 0, OF_LOSSES * image.size, {"view": pixels}, entered),
        *_forward(rest, {layer.name: layer.size for layer in layers}, element),
    ]
    backward = list(_backward(layers, element))
    arrived = {
        name: size
        for kernel in backward
        for name, size in kernel.writes.items()
        if name.startswith(f"{image.name}'")
    }
    updated = dict.fromkeys(("images", "momentum", "square"), pixels)
    return [
        *kernels,
        *backward,
        Kernel(
            LOSSES,
            "losses, backward",
            vector=OF_LOSSES_BACK * image.size,
            reads={**arrived, "view": pixels},
            writes={"view'": pixels},
        ),
        Kernel(UPDATE, "view, backward", reads={"view'": pixels}, writes={"images'": pixels}),
        Kernel(UPDATE, "images", 0, OF_ADAM * image.size, {"images'": pixels, **updated}, updated),
    ]


def _forward(layers: Sequence[Layer], sizes: dict[str, int], element: int) -> Iterator[Kernel]:
    for layer in layers:
        reads = {name: element * size for name, size in layer.inputs.items()}
        writes = {layer.name: element * layer.size}
        for name in layer.normalised:
            size = sizes[name]
            yield Kernel(SUMS, name, vector=OF_SUMS * size, reads={name: element * size})
        if layer.products:
            reads[f"weights of {layer.name}"] = element * layer.weights
            yield Kernel(FORWARD, layer.name, 2 * layer.products, 0, reads, writes)
        else:
            yield Kernel(ELEMENTWISE, layer.name, 0, layer.operations, reads, writes)


def _backward(layers: Sequence[Layer], element: int) -> Iterator[Kernel]:
    """The kernels from the logits to the network's input. ``x' of y`` is y's gradient to x."""
    sizes = {layer.name: layer.size for layer in layers}
    gradients: dict[str, dict[str, int]] = {name: {} for name in sizes}
    gradients[layers[-1].name] = {f"{layers[-1].name}'": element * layers[-1].size}
    for layer in reversed(layers[1:]):
        reads, writes = dict(gradients[layer.name]), dict[str, int]()
        for name, size in layer.inputs.items():
            written = {f"{name}' of {layer.name}": element * size}
            gradients[name] |= written
            writes |= written
        if layer.products:
            reads |= {f"weights of {layer.name}": element * layer.weights}
            yield Kernel(INPUT_GRADIENT, layer.name, 2 * layer.products, 0, reads, writes)
            continue
        mask, more = _saved(layer, sizes, element)
        yield Kernel(ELEMENTWISE_BACK, layer.name, 0, layer.operations, reads | mask, writes)
        if layer.normalised:
            values = sum(sizes[name] for name in layer.normalised)
            yield Kernel(SUMS_BACK, layer.name, vector=OF_SUMS_BACK * values, reads=more)


def _saved(
    layer: Layer, sizes: dict[str, int], element: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Saved maps that a fused backward kernel reads: those for the ReLU, and more for R_feature.

    The ReLU needs the kernel's output, or all inputs to compute it again. R_feature needs the
    inputs of the BatchNorm layers. The kernel reads whichever set is smaller.
    """
    inputs = {name: element * size for name, size in layer.inputs.items()}
    if layer.size < max(layer.inputs.values()):  # It pools: the output does not tell the ReLU.
        return inputs, {}
    output = {layer.name: element * layer.size}
    normalised = {name: element * sizes[name] for name in layer.normalised}
    if sum(inputs.values()) >= sum(normalised.values()) + output[layer.name]:
        return output, normalised
    first, *others = inputs.items()
    return dict([first]), dict(others)


def _module(node: fx.Node) -> nn.Module | None:
    owner = node.graph.owning_module
    if node.op != "call_module" or owner is None:
        return None
    return owner.get_submodule(str(node.target))


def _size(node: fx.Node) -> int:
    return math.prod(node.meta["tensor_meta"].shape)


def _layer(node: fx.Node, stored: set[fx.Node]) -> Layer:
    size, module = _size(node), _module(node)
    if node.op == "placeholder":
        return Layer(node.name, size, {})
    if isinstance(module, nn.Conv2d | nn.Linear):
        source, weight = node.all_input_nodes[0], module.weight
        products = size * math.prod(weight.shape[1:])
        return Layer(node.name, size, {source.name: _size(source)}, products, weight.numel())
    inputs: dict[str, int] = {}
    normalised: list[str] = []
    fused = [node]  # the operations from the stored inputs to this map
    for operation in fused:
        for source in operation.all_input_nodes:
            read = _size(source)
            if operation.target is operator.getitem:  # a shortcut may read each second pixel only
                read = min(read, _size(operation))
            if source in stored:
                inputs[source.name] = max(read, inputs.get(source.name, 0))
            elif source not in fused:
                fused.append(source)
        if isinstance(_module(operation), nn.BatchNorm2d):
            normalised.append(operation.all_input_nodes[0].name)
    operations = sum(
        _size(operation) * (2 if isinstance(_module(operation), nn.BatchNorm2d) else 1)
        for operation in fused
    )
    return Layer(node.name, size, inputs, 0, 0, operations, tuple(normalised))
