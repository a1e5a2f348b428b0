"""The zoo of teachers: its members, their training, and a toy run of the study."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.zoo import data, members, report, study, train, verdicts
from benchmarks.zoo.members import DEVELOPMENT, MEMBERS, UNSEEN, halves
from pipeline.device.seeding import restored_generators
from pipeline.objective.bn_statistics import batchnorm_layers
from pipeline.teachers.networks import build_network

NAMES = ("fashion-plain-adam", "fashion-residual-no-decay")  # Each is the judge of the other.
TOY = (
    *("--images", "20", "--steps", "2", "--set", "synthesis.iterations=1"),
    *("--set", "synthesis.compile=false", "--set", "distillation.compile=false"),
    *("--set", "execution.device=cpu"),
)


def random_origin(folder: Path, origin: str, split: str) -> tuple[Tensor, Tensor]:
    """Noise in the shape of CIFAR-10 or Fashion-MNIST: 20 images of each class."""
    shape = (200, 3, 32, 32) if origin == "cifar10" else (200, 1, 28, 28)
    generator = torch.Generator().manual_seed(len(split))
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return pixels, torch.arange(200) % 10


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members after a few steps on noise."""
    out = tmp_path_factory.mktemp("teachers")
    with pytest.MonkeyPatch.context() as patch, restored_generators():
        patch.setattr(data, "_origin", random_origin)
        for name in NAMES:
            recipe = dataclasses.replace(MEMBERS[name].recipe, epochs=2)
            patch.setitem(MEMBERS, name, dataclasses.replace(MEMBERS[name], recipe=recipe))
            train.make(out, out, name)
    return out


def test_the_halves_follow_from_the_names_and_are_of_one_size() -> None:
    assert len(MEMBERS) >= 24
    count = Counter(halves().values())
    assert set(count) == {DEVELOPMENT, UNSEEN}
    assert abs(count[DEVELOPMENT] - count[UNSEEN]) <= 1
    assert halves() == halves()
    assert halves()["plain-adam"] == DEVELOPMENT
    assert halves()["residual"] == UNSEEN


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_its_students_and_its_judge_fit_its_data(name: str) -> None:
    member = MEMBERS[name]
    shape = (2, member.data.channels, member.data.side, member.data.side)
    for student in study.students(member):
        network = build_network(
            f"benchmarks.zoo.networks:{student.family}", student.arguments, "student"
        )
        assert network.eval()(torch.zeros(shape)).shape == (2, len(member.data.classes))
    own, other = study.students(member)
    assert own.family != other.family
    judge = MEMBERS[members.judge_of(name)]
    assert judge.family != member.family
    assert set(member.data.classes) <= set(judge.data.classes)


def test_a_subset_has_its_own_labels_size_and_colours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(data, "_origin", random_origin)
    pixels, labels = data.read(tmp_path, "cat-dog", data.TRAIN)
    assert pixels.shape == (40, 3, 32, 32)
    assert labels.bincount().tolist() == [20, 20]
    pixels, labels = data.read(tmp_path, "mix", data.TEST, images=100)
    assert pixels.shape == (100, 3, 32, 32)
    assert int(labels.max()) > 9
    everything, numbers = random_origin(tmp_path, "cifar10", data.TRAIN)
    pixels, labels = data.read(tmp_path, "cat-dog", data.TRAIN)
    cats = {image.numpy().tobytes() for image in everything[numbers == data.CIFAR10.index("cat")]}
    assert {image.numpy().tobytes() for image in pixels[labels == 0]} == cats


def test_fine_tuning_keeps_the_statistics_and_changes_the_weights() -> None:
    recipe = members.Recipe(start="cifar10", epochs=1)
    member = dataclasses.replace(
        MEMBERS["fashion-frozen"], network={"widths": (8, 16)}, recipe=recipe
    )
    network = build_network(member.source, member.arguments, "teacher")
    layer = batchnorm_layers(network)[0]
    before, weight = layer.running_mean.clone(), layer.weight.detach().clone()
    real = (torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8), torch.arange(256) % 10)
    train.train(network, train.preprocessing(member), real, recipe)
    assert torch.equal(layer.running_mean, before)
    assert not torch.equal(layer.weight, weight)


def test_rounded_weights_have_few_values() -> None:
    arguments = {**MEMBERS["quantised"].arguments, "bits": 3}
    network = build_network("benchmarks.zoo.networks:plain", arguments, "teacher")
    first = network[0][0]
    impulse = torch.zeros(1, 3, 9, 9)
    impulse[0, 0, 4, 4] = 1.0
    # The answer to an impulse holds the weights of one input channel.
    answer = first(impulse)[0, 0].detach()
    assert len(answer.unique()) <= 2**3
    first(impulse).sum().backward()
    assert first.weight.grad is not None


def test_training_writes_what_the_study_needs_and_skips_what_exists(
    teachers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        facts = json.loads((teachers / f"{name}.json").read_text())
        assert facts["half"] == halves()[name]
        assert 0 <= facts["accuracy"] <= 1
    assert train.test_tar(teachers, "fashion").is_file()
    monkeypatch.setattr(train, "make", lambda *_: pytest.fail("trained again"))
    assert train.main([str(teachers), str(teachers), *NAMES]) == 0


def test_a_toy_run_of_the_study_reports_and_continues(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    name = NAMES[0]
    call = [str(teachers), str(tmp_path), name, *TOY]
    assert study.main(call) == 0
    facts = json.loads((tmp_path / f"{name}.json").read_text())
    assert facts["judge"] == NAMES[1]
    assert facts["own_share"] == pytest.approx(
        facts["own_accuracy"] / facts["teacher_accuracy"], abs=1e-5
    )
    assert set(facts["seconds"]) == {"synthesis", "judge", "own", "other"}
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert report.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"| {name} | fashion | yes |" in shown
    assert "own architecture, with BatchNorm | 1 |" in shown
    small = ["--images", "12", "--made", TOY[TOY.index("--images") + 1], "--steps", "2"]
    trial = ["--set", "evaluation.trial_steps=2", *TOY[TOY.index("--set") :]]
    assert verdicts.main([str(teachers), str(tmp_path), name, *small, *trial]) == 0
    shown = capsys.readouterr().out
    assert all(f"| {name} | {kind} |" in shown for kind in verdicts.KINDS)
    assert "Spearman, all:" in shown and "of 4" in shown
    made: list[str] = []
    monkeypatch.setattr(study, "study", lambda each, _: made.append(each) or facts)
    assert study.main(call) == 0
    assert made == []
    assert study.main([*call, "--steps", "3"]) == 0
    assert made == [name]


def test_the_study_names_members_that_are_not_trained(
    teachers: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert study.main([str(teachers), str(tmp_path), "fashion-vit", "plain-adam", *TOY]) != 0
    assert "plain-adam: run benchmarks.zoo.train plain-adam residual first" in caplog.text
    assert not (tmp_path / "plain-adam.json").exists()


def test_the_report_orders_members_and_compares_with_the_bars() -> None:
    common = {"batchnorm": True, "other_share": 0.8, "name": "a"}
    results = [
        {**common, "own_share": 0.7},
        {**common, "own_share": 0.9},
        {**common, "own_share": 0.95},
        {**common, "own_share": 0.6, "batchnorm": False},
    ]
    lines = report.bars(results).splitlines()
    assert "| 3 | 90.0 % | 85%, reached | 70.0 % | 75%, missed |" in lines[2]
    assert "| 1 | 60.0 % | 70%, missed | 60.0 % | 55%, reached |" in lines[3]
    assert "| 4 | 80.0 % | 75%, reached | 80.0 % | - |" in lines[4]


def test_the_development_half_and_its_judges_are_trained_first() -> None:
    order = train.ordered()
    assert sorted(order) == sorted(MEMBERS)
    needed = {name for name in MEMBERS if halves()[name] == DEVELOPMENT}
    needed |= {members.judge_of(name) for name in needed}
    assert set(order[: len(needed)]) == needed
