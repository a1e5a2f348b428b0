"""The GPU benchmarks at toy size: what they find right, what they write, and what they keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import cifar_networks, gpu, gpu_checks
from benchmarks.engine import DEFAULT, PUBLISHED
from pipeline.engine import Engine


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("wrn40_2", 2_243_546),
        ("wrn16_1", 175_066),
    ],
)
def test_networks_are_those_of_the_papers(factory: str, parameters: int) -> None:
    network = getattr(cifar_networks, factory)()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    narrow = getattr(cifar_networks, factory)(classes=7, width=4).eval()
    assert narrow(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_flops_are_those_of_the_convolutions_and_the_last_layer() -> None:
    """ResNet-34 at 32 pixels, its multiply-adds counted by hand."""
    network = cifar_networks.resnet34(width=4)
    teacher = gpu_checks.random_teacher(network, (3, 32, 32), 10, 2, torch.device("cpu"))
    multiplies = 1024 * 9 * 3 * 4 + 6 * 1024 * 9 * 4 * 4  # stem, first stage
    for width, pixels, blocks in ((8, 256, 4), (16, 64, 6), (32, 16, 3)):
        half = width // 2
        multiplies += pixels * width * (9 * half + half + (2 * blocks - 1) * 9 * width)
    assert gpu_checks.counted_flops(teacher) == 4 * (multiplies + 32 * 10)


def test_a_toy_run_measures_and_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--toy", "--pairs", "2", "--reports", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report["cases"]) == {"ResNet-34", "ResNet-50"}
    assert report["warnings"] == []
    for case in report["cases"].values():
        loops = case["loops"]
        ratios = [
            ours / base
            for ours, base in zip(loops[DEFAULT]["rates"], loops[PUBLISHED]["rates"], strict=True)
        ]
        assert len(ratios) == 2
        assert loops[DEFAULT]["ratio"] == pytest.approx(sum(ratios) / 2, abs=0.02)
        flops = case["flops_an_image_iteration"] * loops[DEFAULT]["image_iterations_per_second"]
        assert case["share_of_peak"] == pytest.approx(
            flops / report["bf16_matrix_peak_tflops"] / 1e12, abs=2e-3
        )
    text = (tmp_path / "gpu.md").read_text()
    assert text == capsys.readouterr().out
    assert "no result" in text and "WRONG" not in text


@pytest.mark.parametrize("what", ["loss", "gradient", "nan"])
def test_a_broken_engine_is_found(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken where it computes in bfloat16 only, as a wrong kernel would be."""
    real = Engine.step

    def broken(engine: Engine, images: Tensor, labels: Tensor) -> Any:
        loss, terms = real(engine, images, labels)
        if engine._precision == "float32":
            return loss, terms
        wrong = {
            "loss": lambda: 1.1 * loss,
            "gradient": lambda: loss.detach() + 0.2 * (loss - loss.detach()),
            "nan": lambda: loss * torch.nan,
        }
        return wrong[what](), terms

    monkeypatch.setattr(Engine, "step", broken)
    assert gpu.main(["--toy", "--pairs", "1", "--reports", str(tmp_path)]) == 1
    assert "WRONG" in (tmp_path / "gpu.md").read_text()


def test_the_bars_are_met_or_missed() -> None:
    loops = {DEFAULT: {"image_iterations_per_second": 50.0, "ratio": 10.0, "ms_an_image": 11.0}}
    case = {
        "loops": loops,
        "flops_an_image_iteration": 4.0,
        "bars": {"ratio": 10.0, "ms_an_image": 10.0, "share_of_peak": 0.4},
    }
    bars = gpu.judged(case, peak=400.0)["bars"]
    assert {name: bar["met"] for name, bar in bars.items()} == {
        "ratio": True,
        "ms_an_image": False,
        "share_of_peak": True,
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no GPU"):
        gpu.main(["--reports", str(tmp_path)])
    assert not list(tmp_path.iterdir())
