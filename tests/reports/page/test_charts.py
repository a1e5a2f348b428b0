from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from pipeline.reports.page.charts import Line, Scale, is_falling, line_chart, short


def ticks(svg: str) -> list[str]:
    return re.findall(r'class="tick"[^>]*>([^<]+)<', svg)


def test_a_chart_is_xml_and_names_its_lines() -> None:
    lines = [Line("<A>", [(0, 1.0), (5, 2.0)]), Line("B", [(0, 3.0), (5, 1.5)])]
    svg = str(line_chart("loss", "step", lines))
    root = ElementTree.fromstring(svg)
    assert "<A> ends at 2; B ends at 1.5" in root.attrib["aria-label"]
    assert len(root.findall("polyline")) == 2


def test_values_that_spread_widely_are_drawn_by_their_logarithm() -> None:
    svg = line_chart("loss", "step", [Line("", [(0, 1000.0), (1, 10.0), (2, 0.1)])])
    (points,) = re.findall(r'points="([^"]+)"', svg)
    heights = [float(point.partition(",")[2]) for point in points.split()]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    assert {"1k", "10", "0.1"} <= set(ticks(svg))


def test_shares_are_drawn_from_nothing_to_all() -> None:
    svg = line_chart("agreement", "step", [Line("", [(0, 0.4), (1, 0.5)])], share=True)
    assert {"0%", "50%", "100%"} <= set(ticks(svg))


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(0, math.nan), (1, math.inf)]])
def test_there_is_no_chart_of_less_than_two_points(points: list[tuple[float, float]]) -> None:
    assert line_chart("loss", "step", [Line("", points)]) == ""


@pytest.mark.parametrize("values", [(5.0, 5.0), (0.0, 0.0), (-3.0, 2.0), (1e-9, 2e-9), (0.0, 1e6)])
def test_any_values_get_ticks_inside_the_drawing(values: tuple[float, float]) -> None:
    svg = str(line_chart("loss", "step", [Line("", list(enumerate(values)))]))
    assert len(ticks(svg)) >= 3
    assert all(0 <= float(y) <= 190 for y in re.findall(r' y="([-\d.]+)"', svg))


def test_a_scale_maps_its_ends() -> None:
    scale = Scale(1, 100, 0, 50, log=True)
    assert (scale(1), scale(10), scale(100)) == (0, 25, 50)


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0.01234, 12.0, 1500.0, 2e6)] == [
        "0.0123",
        "12",
        "1.5k",
        "2M",
    ]


def test_a_curve_that_still_falls_is_told_from_one_that_settled() -> None:
    falling = [(float(x), 100.0 - x) for x in range(91)]
    assert is_falling(falling) == pytest.approx(0.9)
    assert is_falling([(x, max(50.0, y)) for x, y in falling]) == 0
