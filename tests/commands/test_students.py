from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from flows.command_line import main as flow
from pipeline.cli import main
from tests.command_line import printed, refused
from tests.conftest import Params, changed, dataset, tree, write_blobs, write_params


def png(mode: str) -> bytes:
    """A black picture of 8 by 8 pixels in one of Pillow's modes."""
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, "PNG")
    return file.getvalue()


def test_students_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], params: Path, tmp_path: Path
) -> None:
    main(["synthesize", "--params", str(params)])
    capsys.readouterr()
    setting = f"paths.students={params}/below"
    text = refused(capsys, "distill", "--params", str(params), "--set", setting)
    assert "paths.students" in text and "cannot be written" in text


def test_a_run_from_teacher_to_accuracy(
    capsys: pytest.CaptureFixture[str], tiny: Params, tmp_path: Path
) -> None:
    write_blobs(tmp_path / "real.tar", 30)
    changes = {
        "adaptive.rounds": 1,
        "synthesis.iterations": 30,
        "distillation.noise_baseline": True,
        "distillation.procedural_baseline": True,
        "distillation.seeds": [0, 1],
        "distillation.steps": 40,
        "evaluation.data": str(tmp_path / "real.tar"),
    }
    path = str(write_params(changed(tiny, changes), tmp_path / "params.yaml"))
    made = printed(capsys, "synthesize", "--params", path)
    assert made[0] == f"made 3 shards in {dataset(tiny)}"
    assert made[1].startswith("images to look at: ")
    assert Path(made[1].partition(": ")[2]).is_file()
    assert printed(capsys, "verify", "--params", path) == ["26 images verified, unsigned"]
    trained = printed(capsys, "distill", "--params", path)
    assert trained == [f"trained 4 students in {tiny['paths']['students']}"]
    teacher, *students = printed(capsys, "evaluate", "--params", path)
    assert teacher.startswith("teacher ") and teacher.endswith(" of 30 real images")
    assert [line.partition(", ")[0] for line in students] == ["student", "student"]
    reports = Path(tiny["paths"]["reports"])
    assert list(tree(reports)) == [
        "accuracy.csv",
        "classes.csv",
        "confusion.csv",
        "distillation.csv",
        "distillation.json",
        "distillation.png",
        "dreamshard.json",
        "evaluation.json",
        "grids/round-0.png",
        "grids/round-1.png",
        "synthesis.csv",
        "synthesis.json",
        "synthesis.png",
    ]
    report = json.loads((reports / "evaluation.json").read_bytes())
    assert report["teacher_accuracy"] > 0.9
    rows = list(csv.DictReader((reports / "confusion.csv").open()))
    models = ("teacher", "student-0", "student-1", "noise-0", "procedural-0")
    for model in models:
        assert sum(int(row["images"]) for row in rows if row["model"] == model) == 30
    right = [r for r in rows if r["model"] == "teacher" and r["label"] == r["predicted"]]
    assert sum(int(r["images"]) for r in right) == round(30 * report["teacher_accuracy"])
    assert set(report["student_accuracies"]) == {"0", "1"}
    mean = sum(report["student_accuracies"].values()) / 2
    assert report["student_accuracy"] == pytest.approx(mean, abs=1e-6)
    assert report["student_accuracy"] > 0.6
    assert (report["images"], report["classes"], report["real_images"]) == (26, 3, 30)
    summary = "\n".join(printed(capsys, "summary", "--params", path))
    assert f"26 images, 3 classes, 3 shards in {dataset(tiny)}/" in summary
    assert "on 30 real images" in summary and "the same student trained on noise" in summary
    accuracy = report["procedural_baseline_accuracy"]
    assert (
        f"procedural {accuracy:.1%}, the same student trained on procedural pictures that the "
        "teacher selected" in summary
    )
    assert f"student of procedural,{accuracy}" in (reports / "accuracy.csv").read_text()
    before = tree(dataset(tiny))
    assert printed(capsys, "synthesize", "--params", path)[0].startswith("made 0 shards")
    assert printed(capsys, "distill", "--params", path)[0].startswith("trained 0 students")
    assert tree(dataset(tiny)) == before


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("evaluation.data=null", "evaluation.data is not set"),
        ("evaluation.data=nowhere.tar", "there is no file nowhere.tar"),
    ],
)
def test_an_evaluation_without_data(
    capsys: pytest.CaptureFixture[str], params: Path, setting: str, said: str
) -> None:
    assert said in refused(capsys, "evaluate", "--params", str(params), "--set", setting)


def test_an_evaluation_before_the_first_student(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    made: Params,
    tmp_path: Path,
) -> None:
    """A wrong normalisation shows before days of work."""
    write_blobs(tmp_path / "real.tar", 30)
    params = changed(made, {"evaluation.data": str(tmp_path / "real.tar")})
    path = str(write_params(params, tmp_path / "p.yaml"))
    assert printed(capsys, "evaluate", "--params", path) == ["teacher 100.0% of 30 real images"]
    assert "accuracy of the teacher alone" in caplog.text
    reports = Path(made["paths"]["reports"])
    report = json.loads((reports / "evaluation.json").read_bytes())
    assert report["teacher_accuracy"] == 1 and "student_accuracy" not in report
    assert (reports / "accuracy.csv").read_text() == "model,accuracy\nteacher,1.0\n"
    assert main(["synthesize", "--params", path]) == 0
    summary = "\n".join(printed(capsys, "summary", "--params", path))
    assert "teacher    100.0% on 30 real images" in summary and "student    " not in summary
    off = ["--set", "teacher.input.mean=[-1.5]"]
    printed(capsys, "evaluate", "--params", path, *off)
    assert json.loads((reports / "evaluation.json").read_bytes())["teacher_accuracy"] < 0.9


def test_an_evaluation_without_some_students(
    capsys: pytest.CaptureFixture[str], made: Params, tmp_path: Path
) -> None:
    write_blobs(tmp_path / "real.tar", 3)
    path = str(
        write_params(
            changed(made, {"evaluation.data": str(tmp_path / "real.tar")}), tmp_path / "p.yaml"
        )
    )
    assert main(["distill", "--params", path]) == 0
    setting = "distillation.seeds=[0, 1]"
    capsys.readouterr()
    text = refused(capsys, "evaluate", "--params", path, "--set", setting)
    assert "run distill first" in text


def test_a_summary_of_nothing(capsys: pytest.CaptureFixture[str], params: Path) -> None:
    assert "run synthesize first" in refused(capsys, "summary", "--params", str(params))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"cls": b"1", "png": png("P")}, "Pillow's mode P, not L, RGB, RGBA"),
        ({"cls": b"1", "png": png("I;16")}, "Pillow's mode I;16"),
        ({"cls": b"1", "png": b"no picture"}, "cannot identify image file"),
        ({"cls": b"1", "png": png("L")[:-25]}, "image file is truncated"),
        ({"cls": b"1", "jpg": png("L")}, "has no part 'npy'"),
        ({"png": png("L")}, "has no part 'cls'"),
        ({"cls": b"cat", "png": png("L")}, "invalid literal for int"),
        ({"cls": b"1", "png": png("RGB")}, "holds images of (3, 8, 8)"),
        ({}, "holds no image"),
        (None, "evaluation.data: "),
    ],
)
def test_an_evaluation_on_something_else(
    capsys: pytest.CaptureFixture[str],
    made: Params,
    tmp_path: Path,
    parts: dict[str, bytes] | None,
    said: str,
) -> None:
    data = tmp_path / "real.tar"
    data.write_bytes(b"no tar" * 200)
    if parts is not None:
        with tarfile.open(data, "w") as tar:
            for kind, content in parts.items():
                member = tarfile.TarInfo(f"0.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    path = write_params(changed(made, {"evaluation.data": str(data)}), tmp_path / "p.yaml")
    text = refused(capsys, "evaluate", "--params", str(path))
    assert "evaluation.data" in text and said in text


def test_what_is_said_of_a_student_that_would_be_another_today(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    made: Params,
    tmp_path: Path,
) -> None:
    write_blobs(tmp_path / "real.tar", 30)
    judged = changed(made, {"evaluation.data": str(tmp_path / "real.tar")})
    path = str(write_params(judged, tmp_path / "p.yaml"))
    for command in ("synthesize", "distill", "evaluate"):
        assert main([command, "--params", path]) == 0
    assert caplog.text == ""
    assert "on 30 real images" in "\n".join(printed(capsys, "summary", "--params", path))
    unjudged = printed(capsys, "summary", "--params", path, "--set", "evaluation.data=null")
    assert not any("real images" in line for line in unjudged)
    for command in ("evaluate", "measure"):
        caplog.clear()
        assert main([command, "--params", path, "--set", "distillation.steps=9"]) == 0
        assert "is stale (other parameters" in caplog.text
    capsys.readouterr()
    student = Path(made["paths"]["students"]) / "student-0.safetensors"
    student.write_bytes(bytes(len(student.read_bytes())))
    assert "student-0.safetensors was changed" in refused(capsys, "evaluate", "--params", path)


def test_a_bad_shard_is_told_with_what_mends_it(
    capsys: pytest.CaptureFixture[str], made: Params, tmp_path: Path
) -> None:
    tar = dataset(made) / "train/000000.tar"
    tar.write_bytes(b"x" * 600 + tar.read_bytes()[600:])
    path = write_params(made, tmp_path / "p.yaml")
    for command in ("distill", "measure"):
        capsys.readouterr()
        assert main([command, "--params", str(path)]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "000000.tar" in last and "verify --repair" in last and "Traceback" not in last


def test_the_flow_of_the_students_only_reads_the_dataset(
    params: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.command_line._run", lambda *arguments: None)
    assert flow(["distill", "--params", str(params)]) == 0
    assert not dataset(tiny).exists()
