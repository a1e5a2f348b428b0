"""Line charts as SVG text that needs no script. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
COLOURS = 6  # the classes s0 to s5 of the style sheet
MOST_POINTS = 240  # of a line
_LOG_FROM = 30.0  # values that spread by this factor are drawn on a logarithmic scale


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        name: for the legend and for screen readers.
        points: pairs of x and y, in the order of x. Points that are no finite numbers are left out.
    """

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to a range of the drawing, in a linear or a logarithmic way."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._at(self.low), self._at(self.high)
        share = (self._at(value) - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values inside the scale, three to six of them."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 3) if len(decades) <= 3 else (1,)
            every = -(-len(decades) // 5)
            found = [step * 10.0**decade for decade in decades[::every] for step in steps]
        else:
            step = _round_step((self.high - self.low) / 4)
            first = math.ceil(self.low / step - 1e-9)
            last = math.floor(self.high / step + 1e-9)
            found = [number * step for number in range(first, last + 1)]
        return [value for value in found if self.low <= value * (1 + 1e-9) <= self.high * 1.000001]

    def _at(self, value: float) -> float:
        return math.log10(value) if self.log else value


def line_chart(title: str, x_title: str, lines: Sequence[Line], share: bool = False) -> Markup:
    """Draw lines with two axes, or an empty text if no line has two points.

    Args:
        title: what the values are, for screen readers.
        x_title: the name below the horizontal axis.
        lines: their place in the sequence decides their colour.
        share: the values are shares of 1: the axis ends at 100 %.
    """
    finite = [Line(line.name, _thin(_finite(line.points))) for line in lines]
    xs = [x for line in finite for x, _ in line.points]
    ys = [y for line in finite for _, y in line.points]
    if not xs or min(xs) == max(xs):
        return Markup("")
    across = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = _vertical(ys, share)
    parts = [_grid(across, up, x_title, share)]
    for number, line in enumerate(finite):
        path = " ".join(f"{across(x)},{up(y)}" for x, y in line.points)
        parts.append(
            Markup('<polyline class="line s{}" points="{}"/>').format(number % COLOURS, path)
        )
    ends = "; ".join(f"{line.name} ends at {short(line.points[-1][1])}" for line in finite[:8])
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, f"{title}: {ends}", Markup("").join(parts))


def short(value: float) -> str:
    """A number in a few characters: 0.03, 1.5, 20k."""
    if abs(value) >= 1000:
        for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if abs(value) >= size:
                return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _vertical(ys: Sequence[float], share: bool) -> Scale:
    low, high = min(ys), max(ys)
    if share:
        return Scale(min(0.0, low), max(1.0, high), HEIGHT - BOTTOM, TOP)
    log = low > 0 and high / low > _LOG_FROM
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    elif not log:
        low, high = (0.0 if 0 <= low < high / 2 else low), high
    return Scale(low, high, HEIGHT - BOTTOM, TOP, log)


def _grid(across: Scale, up: Scale, x_title: str, share: bool) -> Markup:
    rows = []
    for value in up.ticks():
        y, text = up(value), f"{value:.0%}" if share else short(value)
        rows.append(
            Markup(
                '<line class="rule" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
            ).format(LEFT, WIDTH - RIGHT, y, y, LEFT - 6, y + 4, text)
        )
    for value in across.ticks():
        rows.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                across(value), HEIGHT - BOTTOM + 15, short(value)
            )
        )
    rows.append(
        Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
            WIDTH - RIGHT, HEIGHT - 4, x_title
        )
    )
    return Markup("").join(rows)


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep evenly spaced points, the first and the last among them."""
    if len(points) <= MOST_POINTS:
        return points
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(number * step)] for number in range(MOST_POINTS)]


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(size * power for size in (1, 2, 5, 10) if size * power >= step * (1 - 1e-9))


def is_falling(points: Sequence[tuple[float, float]], share: float = 0.1) -> float:
    """How much of its last value a curve lost in the last ``share`` of its length, at least 0."""
    if len(points) < 3 or not points[-1][1]:
        return 0.0
    end = points[-1][0]
    since = next(y for x, y in points if x >= end - share * (end - points[0][0]))
    fall = (since - points[-1][1]) / abs(points[-1][1])
    return max(0.0, fall) if math.isfinite(fall) else 0.0
