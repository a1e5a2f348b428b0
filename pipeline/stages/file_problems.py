"""Find files and links that do not belong to a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from pipeline.dataset.layout import FOLDERS, marker_of
from pipeline.errors import UserError
from pipeline.local_files import irregular
from pipeline.storage import Location, Stat


def odd_files(root: Location, expected: Set[str]) -> dict[str, str]:
    """Find what is not a plain file: links, pipes, devices, and folders in the place of a file.

    Args:
        root: the folder of the dataset. An object store has no such files.
        expected: the names of the files of the dataset.

    Returns:
        What each one is in a few words, by its name.
    """
    if not isinstance(root, Path) or not root.is_dir():
        return {}
    folders = {name: "a folder" for name in sorted(expected) if (root / name).is_dir()}
    return irregular(root) | folders


def refuse_linked_folders(root: Location) -> None:
    """Refuse to write into a dataset one of whose folders is a link to another place.

    Raises:
        UserError: names the link.
    """
    if not isinstance(root, Path) or not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        if path.is_symlink() and path.name in FOLDERS:
            raise UserError(
                f"paths.dataset {root}: {path.name} is a link to {os.readlink(path)!a}: put a "
                "folder in its place, or link the folder of the dataset instead"
            )


def file_problems(
    files: Mapping[str, Stat], odd: Mapping[str, str], expected: Set[str]
) -> Iterator[str]:
    """Name each file that is none of the dataset's, and each that is no plain file.

    Args:
        files: the listing of the dataset's folder.
        odd: the result of :func:`odd_files`.
        expected: the names of the files of the dataset.
    """
    for name, kind in odd.items():
        yield (
            f"{name} is {kind}, not a file: remove it, then run verify --repair, or put the file "
            "in its place"
        )
    for name in files:
        if name not in expected and name not in odd and not marker_of(name):
            yield f"{name} does not belong to the dataset: move it elsewhere, or delete it"
