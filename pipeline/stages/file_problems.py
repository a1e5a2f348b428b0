"""Find files and links that do not belong to a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from pipeline.dataset.layout import marker_of
from pipeline.dataset.odd_files import odd_files
from pipeline.stages.authenticate import signature_problems
from pipeline.storage import Location, Stat


def file_problems(root: Location, files: Mapping[str, Stat], expected: Set[str]) -> Iterator[str]:
    """Name each file that is none of the dataset's or no plain file, and an outdated signature.

    Args:
        root: the folder of the dataset.
        files: its listing.
        expected: the names of the files of the dataset.
    """
    yield from signature_problems(root, None)
    odd = odd_files(root, expected)
    for name, kind in odd.items():
        yield (
            f"{name} is {kind}, not a file: remove it, then run verify --repair, or put the file "
            "in its place"
        )
    for name in files:
        if name not in expected and name not in odd and not marker_of(name):
            yield f"{name} does not belong to the dataset: move it elsewhere, or delete it"
