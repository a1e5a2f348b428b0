"""CUDA graphs: all kernels of a function are launched at once instead of one by one.

A small network's kernels are so short that the GPU otherwise waits for the CPU to launch the next.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.errors import first_line

# Calls of each shape before its graph is captured. They compile, and libraries choose kernels.
WARM = 3
_SYNCHRONISING = "synchronizing CUDA operation"  # Part of a warning of PyTorch.
log = logging.getLogger(__name__)
T = TypeVar("T")
_Shapes = tuple[tuple[torch.Size, torch.dtype], ...]


class Graphs:
    """The CUDA graphs of one function of GPU tensors, one graph for each shape of its inputs.

    Example::

        graphs = Graphs()
        for images in batches:
            loss = graphs.run(compute_loss, images)  # captured at the fourth call of each shape
    """

    def __init__(self) -> None:
        self._calls: dict[_Shapes, int] = {}
        self._graphs: dict[_Shapes, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}
        self._possible = True
        # All graphs share one memory pool, because they run one after the other.
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def run(self, function: Callable[..., T], *inputs: Tensor) -> T:
        """Call ``function(*inputs)``, as a CUDA graph once enough calls have been made.

        A function that waits for the GPU, for example for the value of a tensor, cannot be
        captured; it is called directly for ever. A trial call detects such a function before any
        capture, because a failed capture corrupts PyTorch's memory pool and random state.

        Args:
            function: The same function in every call. Its results must not require a gradient.
            inputs: GPU tensors.

        Returns:
            The function's result. The next call overwrites the result's memory, and the memory of
            everything else that the function wrote, such as gradients of weights.
        """
        if not self._possible:
            return function(*inputs)
        with torch.cuda.device(inputs[0].device):
            return self._run(function, inputs)

    def forget(self) -> None:
        """Free the memory of all graphs. Later calls capture new ones."""
        self._graphs.clear()
        self._calls.clear()
        self._pool = None

    def _run(self, function: Callable[..., T], inputs: tuple[Tensor, ...]) -> T:
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if shapes not in self._graphs:
            calls = self._calls[shapes] = self._calls.get(shapes, 0) + 1
            if calls < WARM:
                return self._call_on_stream(function, inputs)
            if calls == WARM:
                return self._try_call(function, inputs)
            try:
                self._graphs[shapes] = self._capture(function, inputs)
            except Exception as error:
                self._give_up(first_line(error))
                return function(*inputs)
        graph, places, outputs = self._graphs[shapes]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor, non_blocking=True)
        graph.replay()
        result: T = outputs
        return result

    def _call_on_stream(self, function: Callable[..., T], inputs: tuple[Tensor, ...]) -> T:
        """Call the function on the stream of the capture, where autograd then keeps its nodes."""
        current = torch.cuda.current_stream()
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = function(*inputs)
        current.wait_stream(self._stream)
        return outputs

    def _try_call(self, function: Callable[..., T], inputs: tuple[Tensor, ...]) -> T:
        """Call the function and find out whether it waits for the GPU."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                outputs = self._call_on_stream(function, inputs)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        if any(_SYNCHRONISING in str(warning.message) for warning in caught):
            self._give_up("a network waits for the GPU")
        return outputs

    def _capture(
        self, function: Callable[..., T], inputs: tuple[Tensor, ...]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], T]:
        graph = torch.cuda.CUDAGraph()
        places = [tensor.clone() for tensor in inputs]
        # Threads that decode and write images may use the GPU during the capture.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            outputs = function(*places)
        self._pool = self._pool or graph.pool()
        return graph, places, outputs

    def _give_up(self, reason: str) -> None:
        log.warning("the step cannot become a CUDA graph and runs without one: %s", reason)
        self._possible = False
