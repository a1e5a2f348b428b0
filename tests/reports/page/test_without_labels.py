"""The page of a dataset without labels: what needs a class is left out, the rest is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.reports.page.advice import advice
from pipeline.reports.page.checks import checks, headline
from pipeline.reports.page.classes import class_facts
from pipeline.reports.page.comparison import render_comparison
from pipeline.reports.page.page import render_run
from pipeline.reports.page.run import Run
from tests.command_line import printed
from tests.conftest import Params, changed, write_params
from tests.reports.page.test_page import Reader, rows_in


def shown(page: bytes) -> str:
    """The texts of a page, in one line."""
    return " ".join(Reader(page.decode()).text.split())


def test_images_and_losses_are_shown_and_classes_are_left_out(without_labels: Run) -> None:
    page = render_run(without_labels).decode()
    reader = Reader(page)
    ids = {attributes.get("id") for _, attributes in reader.tags}
    assert ids >= {"trust", "better", "images", "doubt", "losses", "cost", "provenance"}
    assert not ids & {"classes", "students", "confusion", "accuracy"}
    links = [a["href"] or "" for tag, a in reader.tags if tag == "a"]
    assert links and all(link.removeprefix("#") in ids for link in links)
    assert page.count('<button class="cell') == 20 == len(rows_in(page)["rows"])
    text = shown(page.encode())
    assert "None of the 20 images is marked as flawed" in text
    before = text.partition(" parameters ")[0]  # of which the table names all
    assert re.findall(r"\bnan\b|\bnull\b|confidence|confirm|[Ss]tudent", before) == []
    captions = {a["alt"] for tag, a in reader.tags if tag == "img" and a["alt"]}
    assert all(re.fullmatch(r"image \S+", caption) for caption in captions) and captions


def test_no_question_is_about_labels_or_students(without_labels: Run) -> None:
    assert class_facts(without_labels) == []
    questions = [check.question for check in checks(without_labels, [])]
    assert questions == [
        "Is the dataset complete?",
        "Is it unchanged since it was made?",
        "Do the images look usable?",
    ]
    assert headline(without_labels) == (
        "The 20 images look usable.",
        "The images have no labels: they are for calibration and for losses of your own.",
    )
    assert "student" not in " ".join(each.do for each in advice(without_labels, []))


@pytest.mark.parametrize("mixed", [False, True])
def test_it_is_compared(without_labels: Run, bare: Run, mixed: bool) -> None:
    text = shown(render_comparison(without_labels, bare if mixed else without_labels))
    assert "All images" in text and not re.search(r"\bnan\b", text)
    assert ("B has no such images." in text) is mixed
    assert "labels that the teacher confirms" in text or not mixed


def test_the_command(
    unlabelled_dataset: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = changed(unlabelled_dataset, {"paths.reports": str(tmp_path / "reports")})
    path = str(write_params(params, tmp_path / "params.yaml"))
    printed(capsys, "measure", "--params", path)
    assert (tmp_path / "reports/confusion_synthetic.csv").read_text() == (
        "model,label,predicted,images\n"
    )
    assert printed(capsys, "report", path) == [str(tmp_path / "reports/index.html")]
    dataset = params["paths"]["dataset"]
    out = str(tmp_path / "page.html")
    assert printed(capsys, "report", dataset, "--out", out) == [out]
