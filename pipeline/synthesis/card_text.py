"""Texts of strangers, made harmless for the dataset card.

A licence or an interpolation may come from the model card of a teacher that somebody else
published. In the dataset card it must stay text: no Markdown, no HTML, no further line.
"""

from __future__ import annotations

import re
import unicodedata

MOST = 200  # characters
_ACTIVE = re.compile(r"[&<>|`*_\[\]#!\\~^${}]|(?<=\w):(?=//)|(?<=www)\.|@")
_HARMLESS_CODE = re.compile(r"[\w .,:/+@=()-]+")


def plain_text(text: str) -> str:
    """One line of text for Markdown: every character that could be markup is an HTML entity."""
    return _ACTIVE.sub(lambda match: f"&#{ord(match[0])};", _one_line(text))


def code_span(text: str) -> str:
    """A name in a code span; a name that could end the span is written as plain text."""
    line = _one_line(text)
    harmless = _HARMLESS_CODE.fullmatch(line) and "://" not in line
    return f"`{line}`" if harmless else plain_text(text)


def _one_line(text: str) -> str:
    """The text without line breaks and invisible characters, cut off after ``MOST`` characters."""
    visible = "".join(
        " " if character.isspace() else character
        for character in text
        if character.isspace() or unicodedata.category(character)[0] != "C"
    )
    line = " ".join(visible.split())
    return line if len(line) <= MOST else f"{line[:MOST]}..."
