"""Free a converted graph from the batch size of its export.

Exporters write the size of a batch into reshapes, and into constants that are joined to each image.
To find these places, the graph runs with one batch, and then with a batch twice as large.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

Sizes = dict[fx.Node, tuple[int, ...]]


class Reshape(nn.Module):
    """Reshapes to fixed sizes. One of them, that of the batch, is -1."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, values: Tensor) -> Tensor:
        """Reshape."""
        return values.reshape(self.sizes)


class Join(nn.Module):
    """Concatenates tensors, of which some are the same for each image of a batch."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *values: Tensor) -> Tensor:
        """Repeat the tensors of one image for the whole batch, and concatenate."""
        batch = max(value.shape[0] for value in values)
        return torch.cat([value.expand(batch, *value.shape[1:]) for value in values], self.axis)


class Measured(fx.Interpreter):
    """Runs a graph, and records the size of each value and the values that no image changes.

    Attributes:
        sizes: The sizes of the values, by the nodes that compute them.
        constants: The values that do not depend on the images.
        whole: All values that are whole numbers, such as sizes.
    """

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__(body)
        self.sizes: Sizes = {}
        self.constants: dict[fx.Node, Tensor] = {}
        self.whole: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.sizes[n] = tuple(result.shape)
            if n.op != "placeholder" and self.constants.keys() >= set(n.all_input_nodes):
                self.constants[n] = result
            if result.dtype == torch.int64:
                self.whole[n] = result
        return result


class BatchFinder(Measured):
    """Runs a graph with a batch twice as large, and finds modules that work for any batch.

    Args:
        body: The graph.
        before: The sizes of its values for one batch.
        fixed: Whether the file fixes the size of a batch, so that its constants hold this size.

    Attributes:
        modules: For some nodes, the module that replaces the node's own.
    """

    def __init__(self, body: fx.GraphModule, before: Sizes, fixed: bool) -> None:
        super().__init__(body)
        self._before, self._fixed = before, fixed
        self.modules: dict[fx.Node, nn.Module] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node. If it needs a replacement, make and run the replacement."""
        kind = module_kind(self.module, n)
        module: nn.Module | None = None
        if kind == "OnnxReshape":
            module = self._reshape(n)
        elif kind == "OnnxConcat" and self._fixed:
            module = self._join(n)
        if module is None:
            return super().run_node(n)
        self.modules[n] = module
        inputs = n.args[:1] if kind == "OnnxReshape" else n.args
        result = module(*(self.env[each] for each in inputs if isinstance(each, fx.Node)))
        self.sizes[n] = tuple(result.shape)
        return result

    def same(self, before: Measured) -> dict[fx.Node, Tensor]:
        """The whole numbers that are the same for both batches."""
        return {
            node: value
            for node, value in before.whole.items()
            if node in self.whole and torch.equal(value, self.whole[node])
        }

    def _reshape(self, n: fx.Node) -> nn.Module | None:
        source, shape = n.args[:2]
        if not isinstance(source, fx.Node) or not isinstance(shape, fx.Node):
            return None
        before = self._before[n]
        if self._fixed and shape in self.constants:
            sizes = batch_free(self._before[source], self.sizes[source], before)
            return None if sizes is None else Reshape(sizes)
        after = tuple(super().run_node(n).shape)
        grown = [at for at in range(len(before)) if after[at] != before[at]]
        if len(grown) > 1:
            return None
        return Reshape(tuple(-1 if at in grown else side for at, side in enumerate(before)))

    def _join(self, n: fx.Node) -> nn.Module | None:
        inputs = [each for each in n.args if isinstance(each, fx.Node)]
        batches = {self.sizes[each][0] for each in inputs if self.sizes.get(each)}
        axis = getattr(self.module.get_submodule(str(n.target)), "axis", 0)
        return Join(axis) if axis != 0 and len(batches) == 2 and 1 in batches else None


def batch_free(
    one: tuple[int, ...], two: tuple[int, ...], result: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The sizes of a reshape for any batch, where the file fixes them for one batch.

    Args:
        one: The sizes of the reshape's input for one batch.
        two: The sizes of its input for a batch twice as large.
        result: The sizes of its output for one batch.

    Returns:
        ``result`` with -1 in the place of the batch; None if no place fits.

    Example::

        batch_free((1, 8, 2, 2), (2, 8, 2, 2), (1, 32))  # (-1, 32)
    """
    grown = [at for at, sides in enumerate(zip(one, two, strict=True)) if sides[0] != sides[1]]
    if not grown:
        return result
    outer = math.prod(one[: grown[0]])
    places = [at for at in range(len(result)) if math.prod(result[:at]) == outer]
    if not places or len(grown) > 1:
        return None
    at = places[0]
    # Of [L, N, E], the sizes [L * N, E] hold the batch on the left, and [L, N * heads, E / heads]
    # on the right.
    if at > 0 and len(places) == 1 and len(result) < len(one):
        at -= 1
    return (*result[:at], -1, *result[at + 1 :])


def module_kind(body: nn.Module, node: fx.Node) -> str:
    """The class of the module that a node calls; empty where it calls none."""
    if node.op != "call_module":
        return ""
    return type(body.get_submodule(str(node.target))).__name__
