"""Print the results of ``python -m benchmarks.zoo.study`` as a table, the worst member first.

    python -m benchmarks.zoo.report OUT [--half unseen]

Shares are those of the teacher's accuracy. Below the table stand the medians and the worst cases,
with the bars that they should reach.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.zoo.members import DEVELOPMENT, UNSEEN

Result = dict[str, Any]
# Title, which members (with BatchNorm, without, all), measure, least median, least worst case.
BARS: tuple[tuple[str, bool | None, str, float, float | None], ...] = (
    ("own architecture, with BatchNorm", True, "own_share", 0.85, 0.75),
    ("own architecture, without BatchNorm", False, "own_share", 0.70, 0.55),
    ("another family", None, "other_share", 0.75, None),
)
COLUMNS = (
    *("teacher", "data", "BatchNorm", "its accuracy", "own student", "share"),
    *(
        "other student",
        "share",
        "teacher confirms",
        "judge confirms",
        "judge on real",
        "verdict",
        "seconds",
    ),
)


def read(out: Path, half: str | None = None) -> list[Result]:
    """Read the results of one half, or of both, the worst student of the own architecture first."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    chosen = [each for each in results if half in (None, each["half"])]
    return sorted(chosen, key=lambda each: float(each["own_share"]))


def table(results: Sequence[Result]) -> str:
    """Format a row for each result."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for each in results:
        cells = (
            each["name"],
            each["data"],
            "yes" if each["batchnorm"] else "no",
            _percent(each["teacher_accuracy"]),
            _percent(each["own_accuracy"]),
            f"**{_percent(each['own_share'])}**",
            f"{each['other_family']} {_percent(each['other_accuracy'])}",
            _percent(each["other_share"]),
            _percent(each["teacher_confirms"]),
            f"{each['judge']} {_percent(each['judge_confirms'])}",
            _percent(each["judge_accuracy"]),
            each["verdict"]["level"],
            f"{sum(each['seconds'].values()):.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def bars(results: Sequence[Result]) -> str:
    """Compare the medians and the worst cases with the bars."""
    lines = ["| student | members | median | bar | worst | bar |", "|---" * 6 + "|"]
    for title, batchnorm, measure, median, worst in BARS:
        chosen = [each for each in results if batchnorm in (None, each["batchnorm"])]
        if chosen:
            shares = [float(each[measure]) for each in chosen]
            cells = (
                title,
                str(len(shares)),
                *_compared(statistics.median(shares), median),
                *_compared(min(shares), worst),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _compared(value: float, bar: float | None) -> tuple[str, str]:
    if bar is None:
        return _percent(value), "-"
    return _percent(value), f"{bar:.0%}, {'reached' if value >= bar else 'missed'}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--half", choices=(DEVELOPMENT, UNSEEN), help="both by default")
    options = parser.parse_args(arguments)
    results = read(options.out, options.half)
    sys.stdout.write(f"{table(results)}\n{bars(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
