"""The model of an inversion step: its counts by hand, the bandwidth that counts, and a toy run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.engine import channels, rates, roofline
from benchmarks.engine.rates import bounds, working_sets
from benchmarks.engine.step_model import (
    ELEMENTWISE,
    ELEMENTWISE_BACK,
    FORWARD,
    INPUT_GRADIENT,
    LOSSES,
    PARTS,
    SUMS,
    SUMS_BACK,
    UPDATE,
    Kernel,
    network_layers,
    step_kernels,
)
from benchmarks.gpu.checks import counted_flops, random_teacher
from benchmarks.gpu.loop import TOY_CASES, Case

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A convolution, and a block with a strided shortcut and one with a plain shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 4, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu()
        x = (self.bn2(self.down(x)) + x[:, :, ::2, ::2]).relu()
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


def kernels(element: int = 2) -> list[Kernel]:
    """Two images of 8x8 pixels: maps of 512 elements before the stride and of 128 after it."""
    return step_kernels(network_layers(Tiny(), (3, 8, 8), 2), element)


def of(part: str, layer: str) -> Kernel:
    (found,) = [kernel for kernel in kernels() if (kernel.part, kernel.layer) == (part, layer)]
    return found


def test_a_convolution_counted_by_hand() -> None:
    forward = of(FORWARD, "conv")
    assert forward.matrix == 2 * (2 * 64) * 4 * (3 * 9)  # pixels, channels, products for each
    assert forward.reads == {"x": 2 * 2 * 3 * 64, "weights of conv": 2 * 4 * 27}
    assert forward.writes == {"conv": 2 * 512}
    backward = of(INPUT_GRADIENT, "conv")
    assert backward.matrix == forward.matrix
    assert backward.reads == {"conv' of relu": 2 * 512, "weights of conv": 2 * 4 * 27}
    assert backward.writes == {"x' of conv": 2 * 2 * 3 * 64}


def test_fused_kernels_counted_by_hand() -> None:
    simple = of(ELEMENTWISE, "relu")
    assert simple.vector == 3 * 512 and simple.matrix == 0  # a BatchNorm is two operations
    assert (simple.reads, simple.writes) == ({"conv": 1024}, {"relu": 1024})
    sums = of(SUMS, "conv")
    assert (sums.vector, sums.reads, sums.writes) == (4 * 512, {"conv": 1024}, {})
    shortcut = of(ELEMENTWISE, "mean")  # which reads each second row and column of the shortcut
    assert shortcut.reads == {"down": 256, "relu": 256}
    assert shortcut.writes == {"mean": 2 * 8}


def test_backward_reads_what_was_kept() -> None:
    back = of(ELEMENTWISE_BACK, "relu")
    assert back.reads == {"relu' of mean": 256, "relu' of down": 1024, "conv": 1024}
    assert back.writes == {"conv' of relu": 1024}
    assert of(SUMS_BACK, "relu").reads == {}  # the ReLU needs the same map
    assert of(ELEMENTWISE_BACK, "mean").reads == {"mean' of linear": 16, "down": 256, "relu": 256}


def test_statistics_cost_one_more_map_where_there_is_a_shortcut() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.conv3 = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv1(x)
            out: Tensor = self.conv3((self.bn(self.conv2(x)) + x).relu())
            return out

    found = step_kernels(network_layers(Block(), (3, 4, 4), 1), 4)
    (back,) = [kernel for kernel in found if kernel.part == ELEMENTWISE_BACK]
    (more,) = [kernel for kernel in found if kernel.part == SUMS_BACK]
    assert list(back.reads) == ["relu' of conv3", "relu"] and list(more.reads) == ["conv2"]


def test_pixels_are_float32_whatever_the_network_computes_in() -> None:
    pixels = 4 * 2 * 3 * 64
    for element in (2, 4):
        update = [kernel for kernel in kernels(element) if kernel.part == UPDATE]
        assert sum(kernel.bytes for kernel in update) == (2 + 2 + 7) * pixels
        losses = [kernel for kernel in kernels(element) if kernel.part == LOSSES]
        # The losses read the view twice, write the gradient, and exchange maps with the network.
        assert sum(kernel.bytes for kernel in losses) == 3 * pixels + 2 * pixels * element // 4


def test_order_and_parts() -> None:
    parts = [kernel.part for kernel in kernels()]
    assert set(parts) == set(PARTS)
    assert parts[0] == UPDATE and parts[-1] == UPDATE
    assert parts.index(INPUT_GRADIENT) > max(i for i, p in enumerate(parts) if p == FORWARD)
    written = {"images", "momentum", "square"}
    for kernel in kernels():  # Each array that is read was written before.
        known = {name for name in kernel.reads if not name.startswith("weights of ")}
        assert known - {"linear'"} <= written
        written |= set(kernel.writes)


@pytest.mark.parametrize("case", TOY_CASES, ids=lambda case: case.name)
def test_operations_are_those_that_pytorch_counts(case: Case) -> None:
    teacher = random_teacher(case.build(), case.shape, case.classes, case.batch, CPU)
    layers = network_layers(teacher.network, case.shape, case.batch)
    assert len({layer.name for layer in layers}) == len(layers)
    matrix = sum(kernel.matrix for kernel in step_kernels(layers, 2))
    assert matrix == case.batch * counted_flops(teacher)


def test_working_sets_by_hand() -> None:
    one = Kernel(FORWARD, "one", reads={"a": 10}, writes={"b": 20})
    two = Kernel(FORWARD, "two", reads={"b": 20}, writes={"c": 5})
    three = Kernel(FORWARD, "three", reads={"b": 20, "a": 10}, writes={"d": 1})
    assert working_sets([one, two, three]) == [
        [(10, 31), (20, 30)],  # a: kernel three of the step before touched b, a and d
        [(20, 30), (5, 25)],  # b: kernel one just wrote it
        [(20, 25), (10, 35), (1, 31)],  # a: kernels one and two touched a, b and c
    ]


def test_the_slower_of_operations_and_bytes_counts() -> None:
    machine: Any = SimpleNamespace(
        matrix=100.0, vector=10.0, memory=1.0, bandwidth=lambda size: 1.0 if size > 50 else 4.0
    )
    near = Kernel(ELEMENTWISE, "near", vector=10, reads={"a": 40})
    product = Kernel(FORWARD, "product", matrix=2000, vector=10, reads={"b": 8}, writes={"c": 4})
    far = Kernel(ELEMENTWISE, "far", vector=10, reads={"a": 40})
    first, second, third = bounds([near, product, far], machine)
    assert (first.compute, first.traffic, first.attainable, first.uncached) == (1, 10, 10, 40)
    assert (second.compute, second.traffic, second.attainable) == (21, 8 / 1 + 4 / 4, 21)
    assert third.traffic == 40  # a, b and c were touched since


def test_bandwidth_is_measured_once_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def triad(device: torch.device, size: int) -> float:
        asked.append(size)
        return float(size)

    monkeypatch.setattr(rates, "triad", triad)
    found = rates.Rates(CPU, "float32", rates.Span(8, 2**10, 2**14))
    sizes = [found.bandwidth(size) for size in (0, 1100, 1800, 2100, 10**9)]
    assert sizes == [2**10, 2**10, 2**11, 2**11, 2**14]
    assert found.memory == 2**14 and asked == [2**10, 2**11, 2**14]
    assert found.matrix > 0 and found.vector > 0


@pytest.mark.parametrize("network", ["resnet20", "resnet34", "resnet50"])
def test_a_toy_run(network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--toy", "--network", network, "--batch", "4", "--reports", str(tmp_path)]
    assert roofline.main(arguments) == 0
    report = json.loads((tmp_path / f"roofline-{network}.json").read_text())
    assert report["batch"] == 4 and report["warnings"] == []
    for key in ("gflop", "megabytes", "compute_ms", "attainable_ms"):
        parts = [part[key] for part in report["parts"].values()]
        assert report["whole"][key] == pytest.approx(sum(parts)) and min(parts) >= 0
        assert sum(kernel[key] for kernel in report["kernels"]) == pytest.approx(sum(parts))
    assert len(report["readings_ms"]) == roofline.TOY.readings
    measured = report["measured_parts_ms"]
    assert sum(measured.values()) == pytest.approx(report["measured_ms"])
    rest = "loop around the engine"  # a difference of two timings: noise can make it negative
    assert min(spent for name, spent in measured.items() if name != rest) > 0
    assert report["share_of_attainable"] == pytest.approx(
        report["whole"]["attainable_ms"] / report["measured_ms"]
    )
    text = capsys.readouterr().out
    assert all(f"| {part} |" in text for part in (*PARTS, *roofline.ROWS, "whole step"))


def test_the_kernel_of_the_channels_is_one_kernel() -> None:
    gradient, active, x = torch.randn(3, 2, 4, 3, 3).bfloat16()
    variance, mean, slope = torch.rand(3, 1, 4, 1, 1) + 0.5
    inside = channels.inside(gradient, active, x, variance, mean, slope)
    factor, own = (variance + channels.EPSILON).rsqrt(), slope / (variance + channels.EPSILON) / 18
    before = channels.before(gradient, active, x, factor, mean, own)
    assert torch.allclose(inside.float(), before.float(), rtol=1e-2)


def test_channels_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert channels.main(["--toy"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["8", "16", "32", "64"]
