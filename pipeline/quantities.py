"""Numbers for people and for files: durations, and a fixed number of digits."""

from __future__ import annotations


def show_seconds(seconds: float) -> str:
    """Write a duration with the precision of an estimate.

    Args:
        seconds: Duration, 0 or more.

    Returns:
        ``45 s``, ``12 min``, ``3 h 20 min`` or ``2 d 3 h``. Days begin at 48 hours.
    """
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: ``1 shard``, ``2 shards``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def six_digits(value: float) -> float:
    """Round to six significant digits, so that last bits do not appear in reports."""
    return float(f"{value:.6g}")


def fraction(part: float, whole: float) -> float:
    """Divide, and round the quotient to six decimals: the form of all shares in reports."""
    return round(part / whole, 6)
