from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.cli import main
from pipeline.params import load_params
from tests.command_line import printed, refused
from tests.conftest import CLASSES, Params, write_blobs

REPOSITORY = Path(__file__).parents[2]
SECTIONS = {"teacher", "student", "synthesis", "adaptive", "distillation", "evaluation"}


def init(capsys: pytest.CaptureFixture[str], directory: Path, *options: str) -> list[str]:
    return printed(capsys, "init", str(directory), *options)


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe", pure=True).load(path)
    return values


def inputs_of(directory: Path) -> list[str]:
    """The dependencies that are no results of other stages."""
    stages = read(directory / "dvc.yaml")["stages"].values()
    found = {name for stage in stages for name in stage["deps"]}
    return sorted(name for name in found if not name.startswith("${paths."))


def test_a_template_is_valid_and_has_what_dvc_asks_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = init(capsys, tmp_path / "mine")
    assert "params.yaml" in lines[0] and lines[1] == f"next       cd {tmp_path / 'mine'}"
    assert load_params(tmp_path / "mine/params.yaml").synthesis.images == 1000
    values = read(tmp_path / "mine/params.yaml")
    stages = read(tmp_path / "mine/dvc.yaml")["stages"]
    assert list(stages) == ["synthesize", "distill", "measure", "report"]
    asked = {section for stage in stages.values() for section in stage["params"]}
    assert asked == SECTIONS <= set(values)
    assert inputs_of(tmp_path / "mine") == ["${teacher.weights}"]


def test_a_teacher_of_a_file(
    capsys: pytest.CaptureFixture[str],
    tiny: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_blobs(tmp_path / "real.tar", 3)
    teacher = ["--source", "tinynet.py:classifier", "--weights", "teacher.safetensors"]
    options = ["--classes", "3", "--input", "1x8x8", "--data", "real.tar"]
    init(capsys, Path("a/mine"), *teacher, *options)
    config = load_params(Path("a/mine/params.yaml"))
    assert config.teacher.source == "../../tinynet.py:classifier"
    assert config.teacher.weights == "../../teacher.safetensors"
    assert config.teacher.classes == 3
    assert config.teacher.input.model_dump(exclude={"interpolation"}) == {
        "channels": 1,
        "height": 8,
        "width": 8,
        "mean": (0.5,),
        "std": (0.25,),
    }
    assert config.evaluation.data == "../../real.tar"
    assert inputs_of(Path("a/mine")) == [
        "${evaluation.data}",
        "${teacher.weights}",
        "../../tinynet.py",
    ]


def test_a_teacher_of_a_module(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/own.py").touch()
    init(capsys, tmp_path, "--source", "nets.own:factory", "--force")
    assert inputs_of(tmp_path) == ["nets/own.py"]
    assert read(tmp_path / "params.yaml")["teacher"]["weights"] is None


@pytest.mark.parametrize("source", ["torchvision:resnet18", "timm:resnet18", "hf:ORG/NAME"])
def test_a_teacher_of_a_library_knows_its_classes_and_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, source: str
) -> None:
    init(capsys, tmp_path, "--source", source)
    teacher = read(tmp_path / "params.yaml")["teacher"]
    assert teacher["source"] == source and teacher["weights"] == "pretrained"
    assert "classes" not in teacher and "input" not in teacher
    assert inputs_of(tmp_path) == []


@pytest.mark.parametrize("source", ["torchvision:resnet18", "timm:resnet18"])
def test_classes_reach_the_network_of_a_library(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, source: str
) -> None:
    known = ["--source", source, "--classes", "20"]
    init(capsys, tmp_path / "own", *known, "--weights", "mine.pt")
    for section in ("teacher", "student"):
        assert read(tmp_path / "own/params.yaml")[section]["arguments"] == {"num_classes": 20}
    for weights in ("pretrained", "IMAGENET1K_V2", "ResNet18_Weights.IMAGENET1K_V1"):
        init(capsys, tmp_path / weights, *known, "--weights", weights)
        assert read(tmp_path / weights / "params.yaml")["teacher"]["arguments"] == {}


def test_the_example_is_the_default_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    init(capsys, tmp_path, "--example", "digits")
    ours = load_params(tmp_path / "params.yaml").model_dump()
    default = load_params(REPOSITORY / "params.yaml").model_dump()
    for config in (ours, default):
        for section in ("teacher", "student"):
            source = config[section]["source"]
            config[section]["source"] = source.removeprefix("pipeline.")
    assert ours == default
    stages = read(tmp_path / "dvc.yaml")["stages"]
    assert list(stages) == ["teacher", "synthesize", "distill", "measure", "evaluate", "report"]


def test_the_stages_are_those_of_the_repository(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Only how a stage starts, and the code it depends on, differ outside of a clone."""
    init(capsys, tmp_path, "--example", "digits")
    ours, theirs = (read(path / "dvc.yaml")["stages"] for path in (tmp_path, REPOSITORY))
    assert list(ours) == list(theirs)
    for name in ours:
        for key in ("outs", "metrics", "plots", "params"):
            assert ours[name].get(key) == theirs[name].get(key)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--source", "resnet18"], "--source resnet18 names no factory"),
        (["--classes", "0"], "'0' is not a whole number above 0"),
        (["--input", "32x32"], "'32x32' is not CHANNELSxHEIGHTxWIDTH"),
        (["--example", "digits", "--classes", "3"], "leave --classes out"),
        (["--example", "letters"], "invalid choice: 'letters'"),
    ],
)
def test_a_wrong_option(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], said: str
) -> None:
    assert said in refused(capsys, "init", str(tmp_path / "mine"), *options)
    assert not (tmp_path / "mine").exists()


def test_no_file_of_the_user_is_replaced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".gitignore").write_text("mine")
    assert "holds other files (notes.txt)" in refused(capsys, "init", str(tmp_path))
    init(capsys, tmp_path, "--force")
    assert (tmp_path / ".gitignore").read_text() == "mine"
    (tmp_path / "params.yaml").write_text("mine")
    for options in ([], ["--force"]):
        assert "params.yaml exists" in refused(capsys, "init", str(tmp_path), *options)
    assert (tmp_path / "params.yaml").read_text() == "mine"
    assert "is a file" in refused(capsys, "init", str(tmp_path / "notes.txt"))


@pytest.mark.slow
def test_dvc_runs_the_stages_of_a_teacher(
    capsys: pytest.CaptureFixture[str],
    tiny: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_blobs(tmp_path / "real.tar", 12)
    teacher = ["--source", "tinynet.py:classifier", "--weights", "teacher.safetensors"]
    options = ["--classes", str(CLASSES), "--input", "1x8x8", "--data", "real.tar", "--force"]
    init(capsys, Path("."), *teacher, *options)
    text = Path("params.yaml").read_text()
    for old, new in {
        "images: 1000": "images: 12",
        "iterations: auto": "iterations: 4",
        "steps: 3000": "steps: 4\n  batch_size: 4\n  compile: false",
        "paths:": "execution: {device: cpu, workers: 1}\n\npaths:",
    }.items():
        assert old in text
        text = text.replace(old, new)
    Path("params.yaml").write_text(text)
    command = tmp_path / "bin/dreamshard"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for words in (["init", "--no-scm", "-q"], ["repro", "synthesize"]):
        subprocess.run([sys.executable, "-m", "dvc", *words], check=True)
    assert (tmp_path / "data/synthetic/train/000000.tar").is_file()
    listing = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    stages = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split()
    assert stages == ["synthesize", "distill", "measure", "evaluate", "report"]


def test_the_command_needs_no_parameter_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "."]) == 0
