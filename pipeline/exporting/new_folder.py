"""Write an export into a new folder, which appears under its name only when it is complete."""

from __future__ import annotations

import errno
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.dataset.layout import CARD, PROVENANCE, SIGNATURE, Layout
from pipeline.errors import UserError
from pipeline.exporting.card import export_card
from pipeline.exporting.source import Source
from pipeline.local_files import make_directory, temporary_name
from pipeline.storage import read_many

FolderWriter = Callable[..., str]
"""Writes the files of a format into an empty folder: ``(source, folder, **options)``.

It returns Markdown for the card: what the files hold, and how to load them.
"""


def in_new_folder(write: FolderWriter) -> Callable[..., str]:
    """Turn a :data:`FolderWriter` into an entry of ``FORMATS``: ``(source, out, **options)``.

    The folder gets the dataset's card, its provenance and its signature too. It is made under a
    temporary name beside ``out`` and renamed at the end. After an error it is deleted.
    """

    @functools.wraps(write)
    def export(source: Source, out: str, **options: Any) -> str:
        target = _new_name(source, out)
        make_directory(target.parent)
        building = target.with_name(temporary_name(target.name))
        building.mkdir()
        try:
            loading = write(source, building, **options)
            for name, data in _companions(source, loading).items():
                (building / name).write_bytes(data)
            _sync(building)
            _rename(building, target)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        _sync_one(target.parent)
        return out

    return export


def _new_name(source: Source, out: str) -> Path:
    """The absolute path of a folder that does not exist.

    Raises:
        UserError: it exists, it is a URL, or it lies in the dataset.
    """
    if "://" in out:
        raise UserError(f"{out} is a URL: name a local folder, and copy it from there")
    target, root = Path(os.path.abspath(out)), source.dataset.root
    if os.path.lexists(target):
        raise UserError(f"{out} exists: name a new folder, since nothing is overwritten")
    if isinstance(root, Path) and target.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{out} lies in the dataset {root}: name a folder outside it")
    return target


def _companions(source: Source, loading: str) -> dict[str, bytes]:
    """The files beside the images, by name."""
    layout = Layout(source.dataset.root)
    card, signature = read_many([layout.file(CARD), layout.file(SIGNATURE)])
    files = {
        CARD: export_card(source, loading, (card or b"").decode(errors="replace")).encode(),
        PROVENANCE: source.provenance,
    }
    return files if signature is None else {**files, SIGNATURE: signature}


def _rename(building: Path, target: Path) -> None:
    try:
        os.rename(building, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise UserError(
                f"{target} was made by another program in the meantime: name a new folder"
            ) from error
        raise


def _sync(folder: Path) -> None:
    """Write a folder with everything below it to the disk, so that it survives a power loss."""
    for directory, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync_one(Path(directory, name))
        _sync_one(Path(directory))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
