from __future__ import annotations

import pytest

from pipeline.quantities import fraction, show_seconds, six_digits


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.123, "0.12 s"),
        (29, "29 s"),
        (99, "99 s"),
        (99.7, "2 min"),
        (100, "2 min"),
        (3570, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (3600 * 47 + 60, "47 h 1 min"),
        (3600 * 49, "2 d 1 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


def test_rounding() -> None:
    assert six_digits(1234.56789) == 1234.57 and six_digits(0.000123456789) == 0.000123457
    assert fraction(1, 3) == 0.333333 and fraction(2.0, 2) == 1.0
