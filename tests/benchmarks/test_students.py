from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks.students import labels
from benchmarks.students import study as students
from pipeline.config.schema import Config
from pipeline.dataset.stream import ordered_batches
from pipeline.dataset.tar import Sample, write_tar
from pipeline.execution.runner import JobsFailed
from pipeline.objective.presets import PRESETS
from pipeline.params import load_params
from tests.conftest import Params, changed, dataset, write_blobs, write_params
from tests.distillation.test_job import random


def configured(row: str, out: Path, images: int = 2048, seed: int = 0) -> Config:
    options = argparse.Namespace(
        images=images, steps=9, seed=seed, threads=1, workers=1, device="cpu"
    )
    return students.configured(out, row, options)


@pytest.mark.parametrize(
    ("row", "preset"),
    [
        ("plain", "normalised-medium"),
        ("published", "deepinversion-cifar10"),
        ("deepdream", "deepdream-cifar10"),
    ],
)
def test_rows_that_compare_have_their_preset_and_nothing_of_the_file(
    row: str, preset: str, tmp_path: Path
) -> None:
    assert configured(row, tmp_path).objective == PRESETS[preset]


def test_rows_have_equal_images_and_only_rows_of_the_same_images_share_them(
    tmp_path: Path,
) -> None:
    datasets = {}
    for row in students.ROWS:
        config = configured(row, tmp_path)
        rounds = config.adaptive.rounds * config.adaptive.images
        assert (config.synthesis.images or 0) + rounds == 2048
        assert config.distillation.steps == 9
        datasets[row] = config.paths.dataset
    for same in ("imitation", "adversarial", "recipe", "recipe-unmixed", "sgd"):
        assert datasets.pop(same) == datasets["spread"]
    for same in ("recipe-procedural", "recipe-procedural-unmixed"):
        assert datasets.pop(same) == datasets["procedural-selected"]
    assert datasets.pop("adaptive-half-adversarial") == datasets["adaptive-half"]
    assert len(set(datasets.values())) == len(datasets)
    other = configured("teacher.arguments.blocks=5", tmp_path)
    assert other.paths.dataset not in datasets.values()
    named = configured("synthesis.iterations=7", tmp_path)
    assert named.synthesis.iterations == 7
    assert configured("spread", tmp_path, seed=1).synthesis.seed == 1


def test_the_recipe_is_the_file_s_own(tmp_path: Path) -> None:
    amounts = {"steps": 9, "threads": 1, "seeds": (0,)}
    theirs = load_params(students.PARAMS).distillation.model_copy(update=amounts)
    assert configured("recipe", tmp_path).distillation == theirs


def test_a_result_that_is_there_is_taken_and_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def row(out: Path, name: str, options: argparse.Namespace) -> dict[str, object]:
        calls.append(name)
        keys = {"images": 4, "steps": 2, "seed": 0, "device": "cpu"}
        return {"row": name, **keys, "student_accuracy": 0.5}

    monkeypatch.setattr(students, "row", row)
    monkeypatch.setattr(students, "COLLECTED", tmp_path / "students.json")
    arguments = ["students", str(tmp_path), "plain", "--images", "4", "--steps", "2", "--collect"]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", arguments)
        assert students.main() == 0
        assert json.loads(capsys.readouterr().out)["row"] == "plain"
    assert calls == ["plain"]
    arguments[2] = "starts"
    assert students.main() == 0
    capsys.readouterr()
    monkeypatch.setattr(students, "asked", lambda out, name, options: {"foreign_loss": 2.5})
    assert students.main() == 0  # asked only now: its images were not there before
    assert json.loads(capsys.readouterr().out)["foreign_loss"] == 2.5
    assert calls == ["plain", "starts"]
    collected = json.loads((tmp_path / "students.json").read_text())
    assert [result["row"] for result in collected] == ["plain", "starts"]
    assert [result.get("foreign_loss") for result in collected] == [None, 2.5]


def test_rows_after_one_that_fails_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(out: Path, name: str, options: argparse.Namespace) -> dict[str, object]:
        if name == "warm":
            raise JobsFailed("1 of 1 jobs failed")
        return {"row": name, "foreign_loss": 1.0}

    monkeypatch.setattr(students, "row", row)
    monkeypatch.setattr("sys.argv", ["students", str(tmp_path), "warm", "plain"])
    assert students.main() == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["row"] == "plain"
    assert "rows that failed: warm" in output.err


def test_the_first_real_images_are_one_shard(tmp_path: Path) -> None:
    pixels = (random(5, 3, 4, 4) * 40 + 120).byte()
    for name, part in (("train-0.tar", range(3)), ("train-1.tar", range(3, 5))):
        with (tmp_path / name).open("w+b") as file:
            write_tar(file, (Sample(f"{i:09d}", pixels[i].numpy(), i, {"cls": i}) for i in part))
    students.write_real(tmp_path, tmp_path / "real", 4)
    ((found, labels),) = ordered_batches([tmp_path / "real/train/000000.tar"], 9)
    assert labels.tolist() == [0, 1, 2, 3]
    assert found.equal(pixels[:4])


def test_what_a_teacher_says_of_the_wrong_classes() -> None:
    logits = torch.tensor([[1.0, 9.0, 3.0], [6.0, 1.0, 1.0]])
    gap, deviation = labels.wrong_classes(logits)
    assert gap == pytest.approx((7.0 + 5.0) / 2)
    assert deviation == pytest.approx((2**0.5 + 0.0) / 2)


def test_a_student_may_learn_from_anybodys_images(
    made: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_blobs(tmp_path / "real.tar", 30)
    data = {name: str(tmp_path / "real.tar") for name in ("evaluation.data", "evaluation.foreign")}
    params = write_params(changed(made, data), tmp_path / "p")
    tars = sorted((dataset(made) / "train").glob("*.tar"))
    for tar in tars:
        tar.rename(tmp_path / tar.name)
    moved = [str(tmp_path / tar.name) for tar in tars]

    def called() -> str:
        assert labels.main([str(tmp_path / "out"), str(params), *moved]) == 0
        return capsys.readouterr().out

    text = called()
    (student,) = (tmp_path / "out").glob("*.safetensors")
    trained = student.stat().st_mtime_ns
    assert text.startswith("teacher 100.00%, student ")
    assert text.endswith("foreign_images 30\n")
    assert called() == text and student.stat().st_mtime_ns == trained
