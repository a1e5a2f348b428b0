"""The command report: what it takes, where it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import main
from tests.command_line import printed, refused
from tests.conftest import Params, changed, dataset, tree, write_params


@pytest.fixture
def trained_run(made: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Params:
    """A dataset with a student."""
    path = str(write_params(made, tmp_path / "job.yaml"))
    assert main(["synthesize", "--params", path]) == 0
    assert main(["distill", "--params", path]) == 0
    capsys.readouterr()
    return made


def test_a_run_is_written_into_its_reports(
    trained_run: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (said,) = printed(capsys, "report", str(tmp_path / "job.yaml"))
    page = Path(trained_run["paths"]["reports"]) / "index.html"
    assert said == str(page)
    text = page.read_text()
    assert "dreamshard verify --params job.yaml" in text and "seed 0" in text


def test_without_real_images_measure_judges_the_first_student(
    trained_run: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(capsys, "measure", "--params", str(tmp_path / "job.yaml"))
    printed(capsys, "report", str(tmp_path / "job.yaml"))
    text = (Path(trained_run["paths"]["reports"]) / "index.html").read_text()
    assert "Confusion on synthetic images" in text and "Student, seed 0" in text
    assert "of its synthetic images right" in text


def test_a_dataset_alone_has_a_page_and_two_are_compared(
    trained_run: Params,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tree(dataset(trained_run))
    name = str(dataset(trained_run))
    assert printed(capsys, "report", name) == ["index.html"]
    assert printed(capsys, "report", name, name) == ["comparison.html"]
    assert "None: all" in (tmp_path / "comparison.html").read_text()
    assert printed(capsys, "report", "job.yaml", name, "--out", "both.html") == ["both.html"]
    assert tree(dataset(trained_run)) == before


def test_two_students_are_compared(
    trained_run: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = str(Path(trained_run["paths"]["students"]) / "student-0.safetensors")
    out = tmp_path / "students.html"
    assert printed(capsys, "report", student, student, "--out", str(out)) == [str(out)]
    assert "students/student-0" in out.read_text()
    assert "name a second one" in refused(capsys, "report", student)


def test_a_job_in_another_folder_is_read_from_there(
    made: Params,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = {f"paths.{name}": name for name in ("dataset", "students", "reports")}
    write_params(changed(made, places), tmp_path / "job.yaml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert printed(capsys, "report", "../job.yaml") == ["../reports/index.html"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml"], "there is no parameter file nowhere.yaml"),
        (["nowhere"], "nowhere is neither a parameter file (.yaml), nor a student"),
        (["a.safetensors", "b.safetensors"], "a.safetensors is no intact student"),
        (["nowhere", "--set", "synthesis.images=3"], "--set changes a parameter file"),
        (["a.yaml", "b.yaml", "c.yaml"], "unrecognized arguments"),
    ],
)
def test_a_wrong_name(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert said in refused(capsys, "report", *arguments)


def test_nothing_made_yet(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no complete shard: run synthesize first" in refused(capsys, "report", str(params))


def test_a_file_of_another_program_is_kept(
    made: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.html"
    out.write_text("<p>mine</p>")
    path = str(write_params(made, tmp_path / "job.yaml"))
    text = refused(capsys, "report", path, "--out", str(out))
    assert "is not a page of dreamshard" in text and out.read_text() == "<p>mine</p>"


def test_a_damaged_report_is_named(
    made: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_params(made, tmp_path / "job.yaml"))
    assert printed(capsys, "report", path)
    for name, text in (("measures.json", "[]"), ("distillation.csv", "student,step,loss\na,1,x\n")):
        (tmp_path / "reports" / name).write_text(text)
        assert f"reports/{name} is damaged" in refused(capsys, "report", path)
        (tmp_path / "reports" / name).unlink()
