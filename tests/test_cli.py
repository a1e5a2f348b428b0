from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flows.__main__ import main as flow
from pipeline.cli import main
from pipeline.errors import TryAgainError, UserError
from pipeline.params import parse_range
from pipeline.stages import synthesize as synthesize_module
from pipeline.teachers.networks import read_state_dict
from tests.conftest import Params, changed, dataset, tree, write_blobs, write_params


def png(mode: str) -> bytes:
    """A black picture of 8 by 8 pixels in one of Pillow's modes."""
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def params(tiny: Params, tmp_path: Path) -> Path:
    return write_params(tiny, tmp_path / "params.yaml")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that exits with 2 and prints nothing else."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("dreamshard: ")
    return err


def refused_with(
    capsys: pytest.CaptureFixture[str], tiny: Params, changes: dict[str, Any], path: Path
) -> str:
    write_params(changed(tiny, changes), path)
    errors = {
        refused(capsys, command, "--params", str(path))
        for command in ("synthesize", "status", "verify", "distill", "evaluate")
    }
    assert len(errors) == 1
    assert not dataset(tiny).exists() or tree(dataset(tiny)) == {}
    return errors.pop()


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    capsys.readouterr()
    assert main(arguments) == code
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["dream"], "invalid choice: 'dream'"),
        (["plan", "--nonsense"], "--nonsense"),
        (["plan", "--shards", "0:1"], "--shards"),
        (["plan", "--devices", "0"], "'0' is not a number of devices"),
        (["plan", "--images-per-second", "nan"], "'nan' is not a number of images above 0"),
        (["plan", "--images-per-second", "3", "--probe"], "not allowed with"),
        (["plan", "--params"], "--params"),
        (["verify", "--agreement", "most"], "'most'"),
        (["plan", "--params", "nowhere.yaml"], "there is no parameter file nowhere.yaml"),
        (["plan", "--set", "synthesis"], "write section.key=value"),
    ],
)
def test_a_wrong_command_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in refused(capsys, *arguments)


@pytest.mark.parametrize("command", ["plan", "synthesize", "verify", "status", "distill"])
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("synthesis.imges=3", "unknown key synthesis.imges: did you mean images?"),
        ("synthesis.images=none", 'synthesis.images is "none"'),
        ("synthesis.objective.tv=.nan", "synthesis.objective.tv is NaN"),
        ("teacher.class_names=[a]", "class_names has 1 names for 3 classes"),
    ],
)
def test_a_wrong_parameter(
    capsys: pytest.CaptureFixture[str], params: Path, command: str, setting: str, said: str
) -> None:
    assert said in refused(capsys, command, "--params", str(params), "--set", setting)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher.weights": "nowhere.pt"}, "teacher.weights: there is no file nowhere.pt"),
        ({"teacher.source": "nowhere.py:net"}, "teacher.source: there is no file nowhere.py"),
        ({"teacher.source": "nowhere:net"}, "'nowhere' cannot be imported"),
        ({"teacher.arguments": {"width": 9}}, "does not fit teacher.source: size mismatch"),
        ({"teacher.sha256": "00" * 32}, "teacher.sha256 says 00"),
        (
            {"teacher.classes": 5, "teacher.class_names": None},
            "teacher.classes is 5, but the teacher returns 3 logits",
        ),
        ({"teacher.input.height": 9}, "the teacher cannot take images of teacher.input 1x9x8"),
    ],
)
def test_a_wrong_teacher(
    capsys: pytest.CaptureFixture[str],
    tiny: Params,
    tmp_path: Path,
    changes: dict[str, Any],
    said: str,
) -> None:
    assert said in refused_with(capsys, tiny, changes, tmp_path / "params.yaml")


def test_a_state_dict_with_other_keys(
    capsys: pytest.CaptureFixture[str], tiny: Params, tmp_path: Path
) -> None:
    state = read_state_dict(tmp_path / "teacher.safetensors", "teacher")
    torch.save({f"net.{name}": tensor for name, tensor in state.items()}, tmp_path / "w.pt")
    changes = {"teacher.weights": str(tmp_path / "w.pt")}
    text = refused_with(capsys, tiny, changes, tmp_path / "params.yaml")
    assert "keys missing (first: 0.weight)" in text
    assert "unexpected (first: net." in text


def test_a_teacher_without_batchnorm(
    capsys: pytest.CaptureFixture[str], tiny: Params, tmp_path: Path
) -> None:
    changes = {
        "teacher.source": tiny["teacher"]["source"].replace("classifier", "without_batchnorm"),
        "teacher.weights": None,
    }
    path = write_params(changed(tiny, changes), tmp_path / "params.yaml")
    assert main(["synthesize", "--params", str(path)]) == 0
    assert "2 complete" in printed(capsys, "status", "--params", str(path))
    card = (tmp_path / "dataset" / "README.md").read_text()
    assert "| objective | `without-batchnorm`" in card


@pytest.mark.parametrize("key", ["paths.dataset", "paths.reports"])
@pytest.mark.parametrize("below", ["", "/below"])
def test_an_output_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], params: Path, tmp_path: Path, key: str, below: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    setting = f"{key}={tmp_path}/file{below}"
    text = refused(capsys, "synthesize", "--params", str(params), "--set", setting)
    assert f"{key} {tmp_path}/file{below} cannot be written" in text
    assert not list(tmp_path.rglob("*.tar"))


def test_students_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], params: Path, tmp_path: Path
) -> None:
    main(["synthesize", "--params", str(params)])
    capsys.readouterr()
    setting = f"paths.students={params}/below"
    text = refused(capsys, "distill", "--params", str(params), "--set", setting)
    assert "paths.students" in text and "cannot be written" in text


@pytest.mark.parametrize("text", ["", "1", ":", "0:", ":3", "2:1", "1:1", "a:b", "-1:2", "0:1:2"])
def test_a_wrong_range(capsys: pytest.CaptureFixture[str], params: Path, text: str) -> None:
    line = refused(capsys, "synthesize", "--params", str(params), f"--shards={text}")
    assert "write FIRST:END" in line


def test_ranges() -> None:
    assert parse_range(None) is None
    assert parse_range("0:8") == range(0, 8)
    assert parse_range("12:13") == range(12, 13)
    with pytest.raises(UserError):
        parse_range("8")


def test_help_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    commands = ("plan", "synthesize", "verify", "status", "distill", "evaluate", "summary")
    assert all(command in out for command in commands)


def test_plan(capsys: pytest.CaptureFixture[str], params: Path, tiny: Params) -> None:
    settings = ["--set", "adaptive.rounds=1", "--set", "synthesis.seed=5"]
    lines = printed(capsys, "plan", "--params", str(params), "--list", *settings)
    assert lines[0] == "26 images of 3 classes in 3 shards"
    assert lines[1] == "8 to 9 images a class, seed 5"
    assert [line.split() for line in lines[4:-1]] == [
        ["000000", "0", "12", "2", "3", "000000000"],
        ["000001", "0", "8", "2", "3", "000000012"],
        ["000002", "1", "6", "1", "3", "000000020"],
    ]
    assert not dataset(tiny).exists()


def test_a_plan_of_many_shards_is_short(capsys: pytest.CaptureFixture[str], params: Path) -> None:
    many = ["--set", "synthesis.images=100000", "--set", "synthesis.shard_size=1"]
    lines = printed(capsys, "plan", "--params", str(params), *many)
    assert lines[0] == "100000 images of 3 classes in 100000 shards"
    assert len(lines) == 4


def test_what_a_plan_costs(capsys: pytest.CaptureFixture[str], params: Path) -> None:
    given = ["--images-per-second", "0.5", "--devices", "1", "64"]
    lines = printed(capsys, "plan", "--params", str(params), *given)
    assert lines[3].split()[0] == "devices"
    assert [line.split()[:4] for line in lines[4:]] == [
        ["1", "0.5", "2", "40"],
        ["64", "0.8333", "1", "24"],
    ]
    lines = printed(capsys, "plan", "--params", str(params), *given, "--set", "adaptive.rounds=1")
    assert lines[-1].startswith("without the students' training")


def test_what_a_plan_costs_measured(capsys: pytest.CaptureFixture[str], params: Path) -> None:
    lines = printed(capsys, "plan", "--params", str(params), "--probe")
    assert lines[3].startswith("measured on 1 devices")
    assert lines[-1].split()[0] == "1"


def test_plan_of_equal_classes(capsys: pytest.CaptureFixture[str], params: Path) -> None:
    lines = printed(capsys, "plan", "--params", str(params), "--set", "synthesis.images=9")
    assert lines[1] == "3 images a class, seed 0"


def test_plan_of_fewer_images_than_classes(
    capsys: pytest.CaptureFixture[str], params: Path
) -> None:
    lines = printed(capsys, "plan", "--params", str(params), "--set", "synthesis.images=2")
    assert lines[1] == "0 to 1 images a class, seed 0"


def test_status_tells_what_is_complete_stale_or_missing(
    capsys: pytest.CaptureFixture[str], params: Path, tiny: Params
) -> None:
    status = ["status", "--params", str(params)]
    assert printed(capsys, *status) == ["2 missing: 000000-000001"]
    made = printed(capsys, "synthesize", "--params", str(params), "--shards", "1:2")
    assert made == [f"made 1 shards in {dataset(tiny)}"]
    assert printed(capsys, *status) == ["1 complete", "1 missing: 000000"]
    assert printed(capsys, "synthesize", "--params", str(params))[0].startswith("made 1 shards")
    assert printed(capsys, *status) == ["2 complete"]
    (dataset(tiny) / "train" / "000001.tar").unlink()
    assert printed(capsys, *status) == ["1 complete", "1 stale: 000001"]
    assert main(["finalize", "--params", str(params)]) == 2
    assert "1 of 2 shards" in capsys.readouterr().err
    other = ["--set", "synthesis.iterations=9", "--set", "synthesis.images=240"]
    assert printed(capsys, *status, *other) == [
        "2 stale: 000000-000001",
        "18 missing: 000002-000019",
    ]


def test_verify_tells_every_problem_and_fails(
    capsys: pytest.CaptureFixture[str], params: Path, tiny: Params
) -> None:
    verify = ["verify", "--params", str(params), "--agreement", "0"]
    assert printed(capsys, *verify, code=1)[-1].endswith(" problems")
    main(["synthesize", "--params", str(params)])
    assert printed(capsys, *verify) == ["20 images verified"]
    (dataset(tiny) / "stranger").write_text("?")
    assert printed(capsys, *verify, code=1) == [
        "stranger does not belong to the dataset: move it elsewhere, or delete it",
        "1 problems",
    ]


def test_verify_asks_for_nine_in_ten_labels_by_default(
    capsys: pytest.CaptureFixture[str], params: Path
) -> None:
    noise = ["--params", str(params), "--set", "synthesis.iterations=0"]
    main(["synthesize", *noise])
    (problem, count) = printed(capsys, "verify", *noise, code=1)
    assert problem.startswith("the teacher confirms") and problem.endswith("less than 90.0%")
    assert count == "1 problems"


def test_a_run_from_teacher_to_accuracy(
    capsys: pytest.CaptureFixture[str], tiny: Params, tmp_path: Path
) -> None:
    write_blobs(tmp_path / "real.tar", 30)
    changes = {
        "adaptive.rounds": 1,
        "synthesis.iterations": 30,
        "distillation.noise_baseline": True,
        "distillation.seeds": [0, 1],
        "distillation.steps": 40,
        "evaluation.data": str(tmp_path / "real.tar"),
    }
    path = str(write_params(changed(tiny, changes), tmp_path / "params.yaml"))
    made = printed(capsys, "synthesize", "--params", path)
    assert made[0] == f"made 3 shards in {dataset(tiny)}"
    assert made[1].startswith("images to look at: ")
    assert Path(made[1].partition(": ")[2]).is_file()
    assert printed(capsys, "verify", "--params", path) == ["26 images verified"]
    trained = printed(capsys, "distill", "--params", path)
    assert trained == [f"trained 3 students in {tiny['paths']['students']}"]
    assert main(["evaluate", "--params", path]) == 0
    reports = Path(tiny["paths"]["reports"])
    assert list(tree(reports)) == [
        "accuracy.csv",
        "classes.csv",
        "distillation.csv",
        "distillation.json",
        "distillation.png",
        "evaluation.json",
        "grids/round-0.png",
        "grids/round-1.png",
        "synthesis.csv",
        "synthesis.json",
        "synthesis.png",
    ]
    report = json.loads((reports / "evaluation.json").read_bytes())
    assert report["teacher_accuracy"] > 0.9
    assert set(report["student_accuracies"]) == {"0", "1"}
    mean = sum(report["student_accuracies"].values()) / 2
    assert report["student_accuracy"] == pytest.approx(mean, abs=1e-6)
    assert report["student_accuracy"] > 0.6
    assert (report["images"], report["classes"], report["real_images"]) == (26, 3, 30)
    summary = "\n".join(printed(capsys, "summary", "--params", path))
    assert f"26 images, 3 classes, 3 shards in {dataset(tiny)}/" in summary
    assert "on 30 real images" in summary
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


def test_an_evaluation_without_students(
    capsys: pytest.CaptureFixture[str], params: Path, tmp_path: Path
) -> None:
    write_blobs(tmp_path / "real.tar", 3)
    setting = f"evaluation.data={tmp_path / 'real.tar'}"
    text = refused(capsys, "evaluate", "--params", str(params), "--set", setting)
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
        ({"cls": b"1", "jpg": png("L")}, "a sample has no part 'npy'"),
        ({"png": png("L")}, "a sample has no part 'cls'"),
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


@pytest.mark.parametrize("agreement", ["95", "-1", "nan"])
def test_an_agreement_that_is_no_share(
    capsys: pytest.CaptureFixture[str], params: Path, agreement: str
) -> None:
    text = refused(capsys, "verify", "--params", str(params), "--agreement", agreement)
    assert "--agreement is" in text


def test_the_flow_of_the_students_only_reads_the_dataset(
    params: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.__main__._run", lambda *arguments: None)
    assert flow(["distill", "--params", str(params)]) == 0
    assert not dataset(tiny).exists()


@pytest.mark.parametrize("seconds", ["0", "inf", "nan"])
def test_a_trial_of_no_time(capsys: pytest.CaptureFixture[str], params: Path, seconds: str) -> None:
    text = refused(capsys, "probe", "--params", str(params), "--seconds", seconds)
    assert "--seconds is" in text


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "run the same command again"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (RuntimeError("two\nlines"), 1, "two lines"),
        (UserError("a wrong value"), 2, "a wrong value"),
        (TryAgainError("in use"), 1, "in use"),
        (FloatingPointError("the loss is nan"), 1, "the loss is nan"),
    ],
)
def test_what_goes_wrong_at_work_is_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str],
    params: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def failing(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(synthesize_module, "write_dataset_files", failing)
    assert main(["synthesize", "--params", str(params)]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dreamshard: ") and said in last
