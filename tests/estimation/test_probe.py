"""The probe, and what it suggests; gradient checkpointing, which it may suggest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from ruamel.yaml import YAML
from torch import Tensor, nn

from pipeline.cli import main
from pipeline.device.checkpointing import blocks_of, checkpointed
from pipeline.estimation.findings import findings_text
from pipeline.estimation.probe import ProbeResult, Trial, _suggested
from pipeline.evaluation.signs import Signs
from pipeline.evaluation.verdict import STEADY, judge
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import invert
from pipeline.objective.presets import Objective
from pipeline.params import load_params, parse_params
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher
from tests.conftest import Params, changed, write_params

TEXT = """\
# the user's own comment
teacher:
  source: "{source}"   # their factory
  weights: {weights}
  input: {{channels: 1, height: 8, width: 8, mean: [0.4], std: [0.3]}}
student:
  source: "{source}"
synthesis:
  images: 20          # as many as they want
  batch_size: 6       # too few
  precision: float32
  compile: false
execution: {{device: cpu, workers: 1}}
paths:
  dataset: {root}/dataset
  students: {root}/students
  reports: {root}/reports
"""


def test_a_probe_says_what_it_found_and_draws(
    tiny: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_params(tiny, tmp_path / "params.yaml")
    before = path.read_bytes()
    assert main(["probe", "--params", str(path), "--seconds", "3"]) == 0
    printed = capsys.readouterr().out
    assert "2 BatchNorm layers, 3 classes" in printed
    assert "image-iterations per second, in float32" in printed
    assert "25 iterations" in printed
    assert "verdict    these images look " in printed
    assert "synthesis.batch_size 16" in printed
    assert (tmp_path / "reports" / "probe.png").read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes() == before
    assert not (tmp_path / "dataset" / "train").exists()


def test_a_probe_counts_no_worker_without_a_shard(tiny: Params) -> None:
    findings = ProbeResult(
        parameters=1,
        precision="float32",
        layers=1,
        untrained=0,
        factor=None,
        speed=100.0,
        memory=1.0,
        trials=[Trial(25, 1.0, 1.0, 0.1, 0.2)],
        batch_size=16,
        iterations=200,
        checkpointing=False,
        verdict=judge(Signs(0.5, 0.0, 0.0, 1.0, dict.fromkeys(STEADY, 1.0), {}, None)),
    )
    config = parse_params(tiny)  # 20 images in 2 shards
    assert "run        20 images in about 40 s with 1 worker" in findings_text(findings, config, 1)
    assert any(
        line.startswith("verdict    these images look unusable: the images are nearly of one")
        for line in findings_text(findings, config, 1)
    )
    *_, run, idle = findings_text(findings, config, 4)
    assert run == "run        20 images in about 20 s with 2 workers"
    assert idle.strip().startswith("2 of 4 workers would be idle: lower synthesis.shard_size")


def test_what_was_found_can_be_written(tiny: Params, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    teacher = tiny["teacher"]
    path.write_text(
        TEXT.format(source=teacher["source"], weights=teacher["weights"], root=tmp_path)
    )
    assert main(["probe", "--params", str(path), "--seconds", "2", "--write"]) == 0
    text = path.read_text()
    for comment in ("# the user's own comment", "# their factory", "# as many", "# too few"):
        assert comment in text
    values = YAML(typ="safe", pure=True).load(text)
    assert values["teacher"]["classes"] == 3
    assert values["synthesis"]["batch_size"] == 16
    assert values["synthesis"]["iterations"] >= 200
    assert "checkpointing" not in values["synthesis"] or values["synthesis"]["checkpointing"]
    assert load_params(path).teacher.classes == 3


def test_a_probe_of_a_wrong_teacher_fails_as_any_command(tiny: Params, tmp_path: Path) -> None:
    params = changed(tiny, {"teacher.classes": 5, "teacher.class_names": None})
    path = write_params(params, tmp_path / "params.yaml")
    assert main(["probe", "--params", str(path)]) == 2


def test_more_iterations_are_suggested_where_labels_come_late() -> None:
    def trials(*agreements: float) -> list[Trial]:
        lengths = (25, 50, 100, 200, 400)
        return [Trial(n, a, a, 1.0, 0.2) for n, a in zip(lengths, agreements, strict=False)]

    assert _suggested(trials(1.0), 200) == 200
    assert _suggested(trials(1.0), 400) == 400
    assert _suggested(trials(0.1, 0.5, 0.8, 0.96, 0.99), 200) == 400
    assert _suggested(trials(0.1, 0.2, 0.3, 0.4, 0.5), 200) == 800


def test_blocks_are_those_of_the_architecture() -> None:
    assert len(blocks_of(torchvision.models.resnet18())) == 8
    assert len(blocks_of(torchvision.models.vit_b_16())) == 12
    flat = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    assert blocks_of(flat) == []


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def blocky() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, 1, 1),
        nn.Sequential(Block(), Block(), Block()),
        nn.Flatten(),
        nn.Linear(256, 3),
    )
    return network.eval().requires_grad_(False)


def test_checkpointing_changes_no_pixel() -> None:
    network = blocky()
    preprocessing = Preprocessing(torch.full((1, 1, 1, 1), 0.4), torch.full((1, 1, 1, 1), 0.3))
    teacher = Teacher(network, preprocessing, (1, 8, 8), 3, "0" * 64)
    results = []
    for checkpointing in (False, True):
        with Engine(teacher, Objective(flip=False), checkpointing=checkpointing) as engine:
            results.append(invert(engine, torch.tensor([0, 1, 2, 0]), 7, 5))
    assert torch.equal(results[0].pixels, results[1].pixels)
    assert results[0].curve == results[1].curve
    assert not any("forward" in vars(block) for block in blocks_of(network))


def test_checkpointing_keeps_less() -> None:
    network, images = blocky(), torch.randn(2, 1, 8, 8, requires_grad=True)

    def kept() -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(images).sum()
        return sum(sizes)

    plain = kept()
    with checkpointed(network):
        assert kept() < plain
    assert kept() == plain
