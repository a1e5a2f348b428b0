"""The values that options of the command line take, parsed from their text."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number above 0."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def devices(text: str) -> int:
    """A number of devices."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of devices")
    return int(text)


def rate(text: str) -> float:
    """A number of images a second."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of images above 0")
    return value


def shape(text: str) -> tuple[int, int, int]:
    """Channels, height and width, as in ``3x32x32``."""
    sides = text.lower().split("x")
    if len(sides) != 3 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not CHANNELSxHEIGHTxWIDTH: write it as 3x32x32"
        )
    channels, height, width = map(int, sides)
    return channels, height, width
