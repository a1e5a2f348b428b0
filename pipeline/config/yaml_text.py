"""Read YAML that may be wrong or hostile: every limit is checked before a value is built."""

from __future__ import annotations

import codecs
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    NodeEvent,
    ScalarEvent,
)

from pipeline.errors import UserError, first_line

MOST_BYTES = 1 << 20
DEEPEST = 50  # Levels of lists and sections inside each other.
MOST_NODES = 100_000  # Values, counted again at each alias. The largest table has 2 * 32,767.
LONGEST_NUMBER = 64  # Characters. Reading a longer number takes a time that grows with its square.
_NODE_CHARACTERS = 64  # A longer text counts as several values, so that aliases cannot repeat it.


def decode_text(data: bytes, name: str) -> str:
    """Decode a text file: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        UserError: The bytes are no such text, or are too many.
    """
    if len(data) > MOST_BYTES:
        raise UserError(
            f"{name} has more than {MOST_BYTES >> 20} MiB, too much for parameters: name a "
            "parameter file, and put long lists of class names into a file"
        )
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not valid YAML: byte {error.start} is not text in UTF-8. Save the file "
            "in UTF-8, or name a parameter file"
        ) from error


def read_yaml(text: str, name: str) -> Any:
    """Read one YAML document.

    Args:
        text: The document.
        name: What the text is, for error messages.

    Raises:
        UserError: The text is not valid YAML, or is larger or deeper than parameters can be.

    Example:
        >>> read_yaml("synthesis: {images: 64}", "params.yaml")
        {'synthesis': {'images': 64}}
    """
    try:
        _check_size(text, name)
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, OverflowError) as error:  # ValueError: a date of month 13
        raise UserError(f"{name} is not valid YAML: {_problem(error)}") from error


def _check_size(text: str, name: str) -> None:
    """Refuse a document by its events. The parser yields them one by one and builds nothing."""
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count before it
    anchors: dict[str, int] = {}  # values below an anchor
    count = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise UserError(f"{name}: *{event.anchor} lies inside &{event.anchor}, without end")
            count += anchors.get(event.anchor, 0)
        elif isinstance(event, NodeEvent):
            open_nodes.append((event.anchor, count))
            count += 1
            if isinstance(event, ScalarEvent):
                count += len(event.value) // _NODE_CHARACTERS
                _check_number(event, name)
        if len(open_nodes) > DEEPEST:
            raise UserError(
                f"{name}: line {event.start_mark.line + 1} has more than {DEEPEST} levels"
            )
        if isinstance(event, ScalarEvent | CollectionEndEvent) and open_nodes:
            anchor, before = open_nodes.pop()
            if anchor is not None:
                anchors[anchor] = count - before
        if count > MOST_NODES:
            raise UserError(
                f"{name} holds more than {MOST_NODES} values, where each alias (*name) counts as "
                "the values that it repeats: make it smaller"
            )


def _check_number(event: ScalarEvent, name: str) -> None:
    """Refuse a plain text that YAML would read as a very long number."""
    text = event.value
    plain = event.style is None or event.style == ""
    tagged = str(event.tag or "").endswith((":int", ":float"))
    if len(text) > LONGEST_NUMBER and (tagged or (plain and _begins_a_number(text))):
        raise UserError(
            f"{name}: line {event.start_mark.line + 1} has a number of {len(text)} characters; "
            f"the limit is {LONGEST_NUMBER}. Quote it if it is a text"
        )


def _begins_a_number(text: str) -> bool:
    digits = text.lstrip("+-")
    return digits[:1].isdigit() and all(c in "0123456789abcdefxABCDEFXoO_.:+-" for c in digits)


def _problem(error: Exception) -> str:
    """What is wrong and where, in one line. Values are left out: one may be a secret."""
    if isinstance(error, DuplicateKeyError):
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        key = str(error.problem).partition('"')[2].partition('"')[0]
        return f"{line}duplicate key {key[:60]!r}: keep one of the two"
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        text = " ".join(str(part) for part in (error.context, error.problem) if part)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"{place}{' '.join(text.split())[:200]}"
    return " ".join(first_line(error).split())[:200]
