"""The page as a person sees it: headless Chromium at two widths, in a light and a dark scheme."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.reports.page.comparison import render_comparison
from pipeline.reports.page.page import render_run
from pipeline.reports.page.run import Run
from tests.chromium import Page, find_chromium, open_page
from tests.reports.page.test_comparison import better

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]

# Each text's colour against the background that is painted below it, by the formula of WCAG 2.
CONTRAST = """
(() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) =>
      v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255, 1];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const weak = [];
  let seen = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || element.closest("script, style")) continue;
    const style = getComputedStyle(element);
    const colour = parse(element.closest("svg") ? style.fill : style.color);
    const pair = [light(colour), light(ground(element))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    seen += 1;
    if (ratio < 4.5) weak.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return [seen, weak];
})()
"""
PICTURES = """
[...document.querySelectorAll("img")].filter((image) => image.src && image.naturalWidth === 0)
  .map((image) => image.alt)
"""
CLICK = """
(() => {
  document.querySelectorAll("button.cell")[3].click();
  const dialog = document.getElementById("image");
  return [dialog.open, dialog.querySelectorAll("tbody tr").length,
    dialog.querySelector("img").naturalWidth, dialog.querySelector("h2").textContent,
    document.querySelectorAll("button.cell img")[3].alt];
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    assert CHROMIUM is not None
    with open_page(CHROMIUM) as page:
        yield page


@pytest.fixture
def page(full: Run, tmp_path: Path) -> Path:
    path = tmp_path / "index.html"
    path.write_bytes(render_run(full))
    return path


@pytest.fixture
def comparison(full: Run, tmp_path: Path) -> Path:
    path = tmp_path / "comparison.html"
    path.write_bytes(render_comparison(full, better(full)))
    return path


@pytest.mark.parametrize("name", ["page", "comparison"])
def test_the_page_is_whole_and_legible(
    request: pytest.FixtureRequest, browser: Page, name: str
) -> None:
    path = request.getfixturevalue(name)
    for width, scheme in LOOKS:
        look = f"{name} at {width} pixels, {scheme}"
        browser.messages.clear()
        browser.open(path, width, scheme)
        wide, shown = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= shown == width, f"{look}: the content is {wide} pixels wide"
        assert browser.evaluate(PICTURES) == [], look
        browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        seen, weak = browser.evaluate(CONTRAST)
        assert seen > 100 and weak == [], look
        wide = browser.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{look}: with open details the content is {wide} pixels wide"
        assert browser.messages == [], look


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_click_shows_the_row_of_an_image(
    browser: Page, page: Path, width: int, scheme: str
) -> None:
    browser.messages.clear()
    browser.open(page, width, scheme)
    is_open, rows, natural, title, alt = browser.evaluate(CLICK)
    assert is_open and rows > 20 and natural == 8
    assert title.rpartition(": ")[2] in alt  # the key of the image
    size = browser.evaluate("document.getElementById('image').getBoundingClientRect().width")
    assert size <= width
    _, weak = browser.evaluate(CONTRAST)
    assert weak == []
    browser.evaluate("document.querySelector('#image .after').click()")
    assert browser.evaluate("document.querySelector('#image h2').textContent") != title
    browser.evaluate("document.querySelector('#image .close').click()")
    assert browser.evaluate("document.getElementById('image').open") is False
    assert browser.messages == []


def test_a_console_error_would_be_seen(browser: Page, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<script>throw new Error('broken')</script><img src='http://127.0.0.1:1/a'>")
    browser.messages.clear()
    browser.open(path, 390, "dark")
    assert any("broken" in message for message in browser.messages)
    assert any("127.0.0.1" in message for message in browser.messages)
    assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    browser.messages.clear()
