"""Where the files of a dataset lie."""

from __future__ import annotations

from pipeline.storage import Location


def record_path(root: Location, number: int) -> Location:
    return root / "metadata" / f"{number:06d}.json"
