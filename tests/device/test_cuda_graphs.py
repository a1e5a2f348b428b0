"""CUDA graphs: with a stand-in for the graph anywhere, and on a GPU what is made with them."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu.checks import random_teacher
from benchmarks.teachers.cifar10_networks import resnet18, wrn16_1
from pipeline.config.distillation import DistillationConfig
from pipeline.device import cuda_graphs
from pipeline.device.cuda_graphs import WARM, Graphs
from pipeline.distillation.step import Training
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import Inverted, invert
from pipeline.objective.presets import PRESETS
from pipeline.teachers.teacher import Teacher

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Doubling:
    """A function whose kernel, were it one, doubles its input; of each shape, where it reads and
    writes in a graph."""

    def __init__(self) -> None:
        self.calls = 0
        self.places: list[tuple[Tensor, Tensor]] = []
        self.modes: list[str | int] = []  # in which PyTorch was to look for waiting
        self.waits = False

    def __call__(self, values: Tensor) -> Tensor:
        self.calls += 1
        if self.waits and self.modes[-1:] == ["warn"]:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        self.places.append((values, 2 * values))
        return self.places[-1][1]


@pytest.fixture
def doubling(monkeypatch: pytest.MonkeyPatch) -> Doubling:
    """With graphs that replay it."""
    function = Doubling()

    class Graph:
        def replay(self) -> None:
            values, doubled = self.places
            doubled.copy_(2 * values)

        def pool(self) -> str:
            return "pool"

    @contextlib.contextmanager
    def capture(graph: Any, *arguments: Any, **named: Any) -> Iterator[None]:
        yield
        graph.places = function.places[-1]

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", function.modes.append)
    return function


def test_a_function_is_captured_once_for_each_shape_and_replayed(doubling: Doubling) -> None:
    graphed = partial(Graphs().run, doubling)
    for number in range(WARM + 5):
        for count in (2, 3):
            values = torch.arange(count) + float(number)
            kept = values.clone()
            assert torch.equal(graphed(values), 2 * kept)
            assert torch.equal(values, kept)
    assert doubling.calls == 2 * (WARM + 1)
    assert doubling.modes == ["warn", 0] * 2


def test_graphs_that_are_forgotten_are_captured_anew(doubling: Doubling) -> None:
    graphs = Graphs()
    values = torch.ones(2)
    for _ in range(WARM + 2):
        graphs.run(doubling, values)
    graphs.forget()
    for _ in range(WARM + 2):
        assert torch.equal(graphs.run(doubling, values), 2 * values)
    assert doubling.calls == 2 * (WARM + 1)


def test_a_function_that_waits_for_the_gpu_is_never_captured(
    doubling: Doubling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    doubling.waits = True
    monkeypatch.delattr(torch.cuda, "graph")
    graphed = partial(Graphs().run, doubling)
    with caplog.at_level(logging.WARNING, cuda_graphs.__name__), warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(WARM + 5):
            assert torch.equal(graphed(torch.full((2,), number)), torch.full((2,), 2 * number))
    assert doubling.calls == WARM + 5
    assert caplog.text.count("runs without one: a network waits for the GPU") == 1


def test_a_function_that_cannot_be_captured_is_called_directly(
    doubling: Doubling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @contextlib.contextmanager
    def refuse(*arguments: Any, **named: Any) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    graphed = partial(Graphs().run, doubling)
    with caplog.at_level(logging.WARNING, cuda_graphs.__name__):
        for number in range(WARM + 5):
            assert torch.equal(graphed(torch.full((2,), number)), torch.full((2,), 2 * number))
    assert doubling.calls == WARM + 5 + 1  # the one that was refused
    assert [record.message for record in caplog.records] == [
        "the step cannot become a CUDA graph and runs without one: "
        "operation not permitted when stream is capturing"
    ]


@pytest.mark.gpu
@needs_gpu
def test_a_function_that_reads_a_gpu_value_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    def asking(values: Tensor) -> Tensor:
        return values * float(values.sum().item())

    graphed = partial(Graphs().run, asking)
    for number in range(1, WARM + 5):
        values = torch.full((2,), float(number), device="cuda")
        assert torch.equal(graphed(values), asking(values))
    assert caplog.text.count("a network waits for the GPU") == 1
    torch.rand(2, device="cuda")  # a capture that failed would have spoilt it


def on_gpu(network: nn.Module) -> Teacher:
    torch.manual_seed(0)
    return random_teacher(network, (3, 32, 32), 10, 32, torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.slow
@needs_gpu
def test_images_are_the_same_with_and_without(caplog: pytest.LogCaptureFixture) -> None:
    """Of two sizes, in batches of two sizes, in a thread as a worker's."""
    teacher = on_gpu(resnet18(width=16))
    labels = torch.arange(24) % 10

    def images(graphs: bool) -> list[Inverted]:
        engine = Engine(teacher, PRESETS["normalised-medium"], "bfloat16", True, graphs=graphs)
        with engine:
            return [invert(engine, labels[:count], count, 20) for count in (24, 16, 24)]

    with ThreadPoolExecutor(1) as thread:
        plain, graphed = (thread.submit(images, graphs).result() for graphs in (False, True))
    for one, other in zip(plain, graphed, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert one.curve == other.curve
    assert "CUDA graph" not in caplog.text and "compile" not in caplog.text


@pytest.mark.gpu
@pytest.mark.slow
@needs_gpu
@pytest.mark.parametrize("changes", [{}, {"adversarial": 0.4}, {"imitation": 1.0, "ema": 0.9}])
def test_students_are_the_same_with_and_without(
    changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    teacher = on_gpu(resnet18(width=16))
    config = DistillationConfig(steps=12, batch_size=32, compile=True, **changes)
    pixels = torch.randint(0, 256, (12, 32, 3, 32, 32), dtype=torch.uint8)

    def trained(graphed: bool) -> tuple[list[float], dict[str, Tensor]]:
        torch.manual_seed(1)
        student = nn.Sequential(wrn16_1(), nn.Dropout(0.1))
        training = Training(teacher, student, config, seed=0, graphs=graphed)
        with training:
            losses = [training.step(n, batch).loss.item() for n, batch in enumerate(pixels)]
        return losses, training.published().state_dict()

    (plain, its_state), (graphed, state) = trained(False), trained(True)
    assert graphed == plain
    assert all(torch.equal(state[name], its_state[name]) for name in state)
    assert "CUDA graph" not in caplog.text and "compile" not in caplog.text
