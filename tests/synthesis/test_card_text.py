from __future__ import annotations

import html
import re

import pytest
from ruamel.yaml import YAML

from pipeline.synthesis.card_text import MOST, code_span, plain_text
from tests.conftest import Params, changed, dataset, make

HOSTILE = [
    "mit\n---\nlicense: cc0-1.0\n---\n# Title",
    "mit | | |\n| injected | row |",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![image](https://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "`code` **bold** _em_ ~~x~~ $x$",
    "see https://evil.example or www.evil.example or me@evil.example <b>",
    "a\u2028b\u2029c\x85d\x0be\x00f\x1b[31mg\u202eh",
    "&lt;b&gt;",
    "x" * 10_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20])
def test_a_text_stays_a_text(text: str) -> None:
    for written in (plain_text(text), code_span(text)):
        assert len(written.splitlines()) == 1
        assert not re.search(r"[<>|*\[\]!\\]|://|www\.", written)
        assert written.isprintable()


def test_a_reader_sees_the_same_words() -> None:
    text = "CC-BY-4.0 (with_terms) <b>"
    assert html.unescape(plain_text(text)) == text
    assert plain_text("apache 2.0") == "apache 2.0"
    assert code_span("timm:resnet18.a1_in1k") == "`timm:resnet18.a1_in1k`"
    assert len(html.unescape(plain_text("-" * 10_000))) == MOST + 3


@pytest.mark.parametrize("text", HOSTILE[:4])
def test_the_card_has_the_same_lines(made: Params, text: str) -> None:
    root = dataset(made)
    before = (root / "README.md").read_text()
    text = text.replace("\x00", "")
    make(changed(made, {"teacher.license": text, "teacher.input.interpolation": text}))
    card = (root / "README.md").read_text()
    assert len(card.splitlines()) == len(before.splitlines())
    assert [line.count("|") for line in card.splitlines()] == [
        line.count("|") for line in before.splitlines()
    ]
    head = card.split("---\n")[1]
    assert YAML(typ="safe", pure=True).load(head)["license"] == "other"
    assert "<" not in card.split("---\n", 2)[2].replace("<key>", "")
