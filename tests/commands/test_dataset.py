from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.params import parse_range
from tests.command_line import printed, refused
from tests.conftest import Params, changed, dataset, write_params


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


def test_status_tells_what_is_complete_stale_or_missing(
    capsys: pytest.CaptureFixture[str], params: Path, tiny: Params
) -> None:
    status = ["status", "--params", str(params)]
    assert printed(capsys, *status) == ["2 missing: 000000-000001"]
    made = printed(capsys, "synthesize", "--params", str(params), "--shards", "1:2")
    assert made == [f"made 1 shard in {dataset(tiny)}"]
    told = "teacher not compared with the records: `status --teacher` loads it"
    assert printed(capsys, *status) == ["1 complete", "1 missing: 000000", told]
    assert printed(capsys, *status, "--teacher") == ["1 complete", "1 missing: 000000"]
    assert printed(capsys, "synthesize", "--params", str(params))[0].startswith("made 1 shard in")
    assert printed(capsys, *status) == ["2 complete", told]
    (dataset(tiny) / "train" / "000001.tar").unlink()
    assert printed(capsys, *status) == [
        "1 complete",
        "1 stale: 000001",
        "stale because a file of the shard is missing or has another size: 000001",
        told,
    ]
    assert main(["finalize", "--params", str(params)]) == 2
    assert "1 of 2 shards" in capsys.readouterr().err
    other = ["--set", "synthesis.iterations=9", "--set", "synthesis.images=240"]
    assert printed(capsys, *status, *other) == [
        "2 stale: 000000-000001",
        "18 missing: 000002-000019",
        "stale because synthesis.iterations changed from 4 to 9: 000000-000001",
        "stale because the number of images or their classes changed: 000001",
    ]


def test_verify_tells_every_problem_and_fails(
    capsys: pytest.CaptureFixture[str], params: Path, tiny: Params
) -> None:
    verify = ["verify", "--params", str(params), "--agreement", "0"]
    assert printed(capsys, *verify, code=1)[-1].endswith(" problems")
    main(["synthesize", "--params", str(params)])
    assert printed(capsys, *verify) == ["20 images verified, unsigned"]
    (dataset(tiny) / "stranger").write_text("?")
    problem, count = printed(capsys, *verify, code=1)
    assert problem.startswith("stranger does not belong to the dataset")
    assert count == "1 problem"


def test_verify_asks_for_nine_in_ten_labels_by_default(
    capsys: pytest.CaptureFixture[str], params: Path
) -> None:
    noise = ["--params", str(params), "--set", "synthesis.iterations=0"]
    main(["synthesize", *noise])
    (problem, count) = printed(capsys, "verify", *noise, code=1)
    assert problem.startswith("the teacher confirms") and problem.endswith("less than 90.0%")
    assert count == "1 problem"


@pytest.mark.parametrize("agreement", ["95", "-1", "nan"])
def test_an_agreement_that_is_no_share(
    capsys: pytest.CaptureFixture[str], params: Path, agreement: str
) -> None:
    text = refused(capsys, "verify", "--params", str(params), "--agreement", agreement)
    assert "--agreement is" in text


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


def test_plan_status_and_summary_import_no_factory(
    capsys: pytest.CaptureFixture[str], tiny: Params, tmp_path: Path
) -> None:
    rounds = changed(tiny, {"adaptive.rounds": 1})
    params = write_params(rounds, tmp_path / "params.yaml")
    assert main(["synthesize", "--params", str(params)]) == 0
    (tmp_path / "tinynet.py").write_text("raise AssertionError('imported')\n")
    told = "teacher not compared with the records: `status --teacher` loads it"
    assert printed(capsys, "status", "--params", str(params)) == ["3 complete", told]
    other = ["--params", str(params), "--set", "synthesis.objective.tv=0.5"]
    assert printed(capsys, "status", *other) == [
        "3 stale: 000000-000002",
        "stale because synthesis.objective.tv changed from 0.004 to 0.5: 000000-000002",
    ]
    assert printed(capsys, "plan", "--params", str(params))
    assert printed(capsys, "summary", "--params", str(params))
    assert "imported" in refused(capsys, "status", "--teacher", "--params", str(params))


def test_status_tells_shards_of_two_teachers_apart(
    capsys: pytest.CaptureFixture[str], tiny: Params, params: Path, tmp_path: Path
) -> None:
    main(["synthesize", "--params", str(params)])
    other = ["--params", str(params), "--set", "teacher.input.std=[0.31]"]
    assert printed(capsys, "status", *other)[0] == "2 complete"  # the teacher is not compared
    assert printed(capsys, "status", "--teacher", *other) == [
        "2 stale: 000000-000001",
        "stale because teacher.input changed: 000000-000001",
    ]
    assert main(["synthesize", *other, "--shards", "0:1"]) == 0
    assert printed(capsys, "status", *other)[:2] == ["1 complete", "1 stale: 000001"]


def test_a_range_beyond_the_plan_is_cut_and_said(
    params: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["synthesize", "--params", str(params), "--shards", "1:99"]) == 0
    assert "--shards 1:99: the plan ends at 2, so this run looks at 1:2 only" in caplog.text
