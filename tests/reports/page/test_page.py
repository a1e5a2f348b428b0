"""The HTML of a page: complete, escaped, self-contained, and the same for the same dataset."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.params import parse_params
from pipeline.reports.page.classes import ClassFacts, class_facts
from pipeline.reports.page.gallery import choose_classes
from pipeline.reports.page.page import render_run
from pipeline.reports.page.run import Run
from pipeline.reports.page.write import write_page
from tests.conftest import Params, changed, make
from tests.reports.page.conftest import LOGS

VOID = {"meta", "link", "img", "br", "input"}


class Reader(HTMLParser):
    """Collects texts and tags, and refuses tags that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data + " "


def read(run: Run) -> tuple[str, Reader]:
    page = render_run(run).decode()
    return page, Reader(page)


def rows_in(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="rows">(.*?)</script>', page, re.S)
    assert found
    table: dict[str, Any] = json.loads(found[1])
    return table


def test_every_part_has_its_place(full: Run) -> None:
    page, reader = read(full)
    ids = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    assert ids >= {
        *("accuracy", "trust", "better", "images", "doubt", "classes", "students", "confusion"),
        *("losses", "cost", "load", "provenance"),
    }
    links = [a["href"] or "" for tag, a in reader.tags if tag == "a"]
    assert links and all(link.removeprefix("#") in ids for link in links)
    for text in (
        "seed 1",
        "noise (baseline)",
        "dreamshard verify --params job.yaml",
        "10 images per second",
    ):
        assert text in html.unescape(reader.text)
    assert page.count('<svg class="chart"') >= 5


def test_a_dataset_that_nobody_measured_has_a_page_too(bare: Run) -> None:
    _, reader = read(bare)
    ids = {attributes.get("id") for _, attributes in reader.tags}
    assert "accuracy" not in ids and "students" not in ids and "confusion" not in ids
    assert "Nobody measured students by class" in reader.text


def test_nothing_is_loaded_from_anywhere(full: Run) -> None:
    page, reader = read(full)
    assert "default-src 'none'" in page
    for tag, attributes in reader.tags:
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"
    assert "@import" not in page and "url(" not in page


def test_each_picture_finds_its_row(full: Run) -> None:
    page, reader = read(full)
    table = rows_in(page)
    numbers = [
        int(a["data-row"] or -1) for tag, a in reader.tags if tag == "button" and "data-row" in a
    ]
    assert numbers and set(numbers) == set(range(len(table["rows"])))
    assert len(table["columns"]) == len(table["about"]) == len(table["rows"][0])
    assert table["about"][table["columns"].index("seed")] == "seed of the image's batch"
    seeds = [row[table["columns"].index("seed")] for row in table["rows"]]
    assert all(isinstance(seed, str) for seed in seeds)  # JavaScript would round the number


def test_texts_of_the_user_are_escaped(tiny: Params, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    params = changed(tiny, {"teacher.class_names": [evil, '"><img src=x>', "c"]})
    make(params)
    page = write_page(parse_params(params)).read_text()
    Reader(page)
    assert "<script>alert" not in page and "<img src=x>" not in page
    assert html.escape(evil) in page
    table = rows_in(page)
    assert evil in {row[table["columns"].index("class_name")] for row in table["rows"]}


def test_the_same_dataset_gives_the_same_page(made: Params) -> None:
    first = write_page(parse_params(made)).read_bytes()
    assert write_page(parse_params(made)).read_bytes() == first
    assert len(first) < 3_000_000


def test_secrets_and_private_folders_stay_out(made: Params, tmp_path: Path) -> None:
    params = changed(made, {"teacher.arguments": {"token": "hf_abcdefgh1234"}})
    page = write_page(parse_params(params)).read_text()
    assert "hf_abcdefgh" not in page and str(tmp_path) not in page


def test_a_student_without_a_run_of_its_dataset_is_shown(
    with_reports: Callable[..., Run],
) -> None:
    _, reader = read(with_reports(logs=LOGS))
    assert "seed 0" in reader.text and "accuracy on real images" in reader.text


def test_many_classes_are_chosen_from_the_worst_and_from_all() -> None:
    facts = [
        ClassFacts(
            label=label, name=str(label), images=1, confirmed=1.0, confidence=label / 1000,
            lowest=0.0, flawed=0, replaced=0, teacher=None, student=None, judged=0, confused=None,
        )
        for label in range(1000)
    ]  # fmt: skip
    labels = [each.label for each in choose_classes(facts)]
    assert labels == sorted(labels) and len(labels) == 20
    assert labels[:8] == list(range(8)) and labels[-1] == 999
    assert [each.label for each in choose_classes(facts[:5])] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("images", [2, 5])
def test_rounds_stand_side_by_side(tiny: Params, images: int) -> None:
    params = changed(tiny, {"adaptive.rounds": 1, "adaptive.images": images})
    make(params)
    page = write_page(parse_params(params)).read_text()
    assert "Rounds of Adaptive DeepInversion" in page and "<h4>round 1</h4>" in page


def test_an_unfinished_dataset_has_a_page(tiny: Params) -> None:
    make(tiny, range(0, 1))
    page = write_page(parse_params(tiny)).read_text().replace("\xa0", " ")
    assert "No: 8 of 20 images are missing." in page


def test_the_worst_class_comes_first_in_the_table(full: Run) -> None:
    page, _ = read(replace(full))
    table = page[page.index('id="classes"') :]
    assert table.index('<th scope="row">middle') < table.index('<th scope="row">top')
    assert class_facts(full)[0].name == "middle"
