"""Replace values of a parameter file, as far as the deployment allows it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.config.yaml_text import DEEPEST
from pipeline.errors import UserError

ALLOWED = "DREAMSHARD_ALLOW_OVERRIDES"
"""Environment variable with the sections and keys that may be replaced, separated by commas."""


def allowed_overrides() -> tuple[str, ...] | None:
    """Read the sections and keys that may be replaced; None where nothing restricts them.

    The list comes from the environment of the process and from nowhere else, so that no parameter
    file and no override can extend it.
    """
    text = os.environ.get(ALLOWED)
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())


def check_allowed(keys: Iterable[str]) -> None:
    """Refuse overrides that ``DREAMSHARD_ALLOW_OVERRIDES`` does not list.

    A section in the list allows all of its keys. A key in the list does not allow its section.

    Raises:
        UserError: A key is not allowed here.
    """
    allowed = allowed_overrides()
    if allowed is None:
        return
    for key in keys:
        if not any(f"{key}.".startswith(f"{name}.") for name in allowed):
            raise UserError(
                f"--set {key}: this deployment forbids it. {ALLOWED} allows "
                f"{', '.join(allowed) or 'no override'}: change the parameter file instead"
            )


def check_place(path: Path) -> None:
    """Refuse a parameter file outside the working directory where overrides are restricted.

    Another parameter file could set everything that an override may not.

    Raises:
        UserError: The file, or the target of a symbolic link, lies elsewhere.
    """
    if allowed_overrides() is None:
        return
    try:
        inside = path.resolve().is_relative_to(Path.cwd().resolve())
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle
        inside = False
    if not inside:
        raise UserError(
            f"the parameter file {str(path)[:200]} lies outside the working directory, which this "
            f"deployment forbids ({ALLOWED} is set): name a file inside it"
        )


def override(values: dict[str, Any], key: str, value: Any) -> None:
    """Set ``section.key`` inside nested sections, and make the sections that are missing.

    Raises:
        UserError: The key has too many parts, or goes through a value that is no section.
    """
    *sections, last = key.split(".")
    if len(sections) >= DEEPEST:
        raise UserError(f"--set {key[:60]}...: the key has more than {DEEPEST} parts")
    for section in sections:
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise UserError(f"--set {key}: {section} is a value, not a section")
        values = inner
    values[last] = value
