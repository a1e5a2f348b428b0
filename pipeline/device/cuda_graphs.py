"""A function's work on a GPU as one CUDA graph: its kernels are launched at once, not one by one.

The kernels of a small network end before a core has launched the next ones.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.errors import first_line

WARM = 3  # calls before the one that is captured: they compile, and let libraries choose
_WAITS = "synchronizing CUDA operation"  # PyTorch's words
log = logging.getLogger(__name__)
T = TypeVar("T")
_Kind = tuple[tuple[torch.Size, torch.dtype], ...]


class Graphs:
    """The CUDA graphs of a function of GPU tensors, one for each shape of theirs."""

    def __init__(self) -> None:
        self._calls: dict[_Kind, int] = {}
        self._graphs: dict[_Kind, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}
        self._possible = True
        self._pool: Any = None  # of memory, for all graphs, which run one after the other
        self._stream: torch.cuda.Stream | None = None

    def run(self, function: Callable[..., T], *inputs: Tensor) -> T:
        """``function(*inputs)``, always of the same function.

        What it returns, and what it leaves elsewhere (the gradients of weights), lies in memory
        that the next call writes over. It must not return what needs a gradient. Where it waits for
        the GPU, for the value of a tensor, it is called as it is. That is seen before: a capture
        that fails leaves PyTorch's memory and random numbers in disorder.
        """
        if not self._possible:
            return function(*inputs)
        with torch.cuda.device(inputs[0].device):
            return self._run(function, inputs)

    def forget(self) -> None:
        """Give back the memory of all graphs. They are captured anew."""
        self._graphs.clear()
        self._calls.clear()
        self._pool = None

    def _run(self, function: Callable[..., T], inputs: tuple[Tensor, ...]) -> T:
        kind = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if kind not in self._graphs:
            calls = self._calls[kind] = self._calls.get(kind, 0) + 1
            if calls < WARM:
                return self._aside(function, inputs)
            if calls == WARM:
                return self._watched(function, inputs)
            try:
                self._graphs[kind] = self._captured(function, inputs)
            except Exception as error:
                self._give_up(first_line(error))
                return function(*inputs)
        graph, places, outputs = self._graphs[kind]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor, non_blocking=True)
        graph.replay()
        kept: T = outputs
        return kept

    def _aside(self, function: Callable[..., T], inputs: tuple[Tensor, ...]) -> T:
        """A call on the stream of the capture, so that what autograd keeps of it fits both."""
        current = torch.cuda.current_stream()
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = function(*inputs)
        current.wait_stream(self._stream)
        return outputs

    def _watched(self, function: Callable[..., T], inputs: tuple[Tensor, ...]) -> T:
        """A call that shows whether another could be captured."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                outputs = self._aside(function, inputs)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        if any(_WAITS in str(warning.message) for warning in seen):
            self._give_up("a network waits for the GPU")
        return outputs

    def _captured(
        self, function: Callable[..., T], inputs: tuple[Tensor, ...]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], T]:
        graph = torch.cuda.CUDAGraph()
        places = [tensor.clone() for tensor in inputs]
        # Other threads, which decode and write images, may use the GPU meanwhile.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            outputs = function(*places)
        self._pool = self._pool or graph.pool()
        return graph, places, outputs

    def _give_up(self, reason: str) -> None:
        log.warning("no CUDA graph is possible here, going on without: %s", reason)
        self._possible = False
