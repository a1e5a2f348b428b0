"""Links, pipes and folders in the place of a dataset's files."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path

from pipeline.dataset.layout import FOLDERS
from pipeline.errors import UserError
from pipeline.local_files import irregular
from pipeline.storage import Location, remove


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


def remove_odd_files(root: Location, expected: Set[str]) -> None:
    """Remove links, pipes and devices in the place of the dataset's files.

    Args:
        root: the folder of the dataset.
        expected: the names of the files of the dataset. No other file is removed.

    Raises:
        UserError: a folder is in the place of a file. Nothing was removed.
    """
    odd = [name for name in odd_files(root, expected) if name in expected]
    for name in odd:
        path = root / name
        if isinstance(path, Path) and path.is_dir() and not path.is_symlink():
            raise UserError(
                f"paths.dataset {root}: {name} is a folder, not a file: move it elsewhere, then "
                "run verify --repair"
            )
    for name in odd:
        remove(root / name)
