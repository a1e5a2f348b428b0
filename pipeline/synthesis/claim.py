"""Claim the folder of a dataset, and remove the files that its plan does not have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.dataset.layout import (
    TAR_SIZES,
    Layout,
    is_leftover,
    is_metadata,
    shard_of,
    student_of,
)
from pipeline.dataset.lock import locked
from pipeline.dataset.plan import plan_of
from pipeline.errors import UserError
from pipeline.storage import Location, Stat, listing, location, remove_all


@contextlib.contextmanager
def claimed(config: Config, shared: bool) -> Iterator[None]:
    """Hold the dataset's folder for a run, after it was claimed and tidied up.

    Args:
        config: the parameters.
        shared: other runs may hold the folder too, for other ranges of shards. Then no file is
            removed.

    Raises:
        UserError: another run holds the folder, or the folder holds other files.
    """
    root = location(config.paths.dataset)
    with locked(root, "paths.dataset", shared=shared):
        files = listing(root)
        claim(root, files)
        if not shared:
            prune(config, files)
        yield


def claim(root: Location, files: Mapping[str, Stat]) -> None:
    """Make sure that a folder is a dataset of this project, or empty, and mark it as a dataset.

    Args:
        root: the folder.
        files: the listing of ``root``.

    Raises:
        UserError: the folder holds other files, which a run must not remove.
    """
    folder = Layout(root).metadata
    inside = [name for name in files if is_metadata(name) and not is_leftover(name)]
    if any(shard_of(name) is not None for name in inside):
        return
    # A first run that was killed may have left a tar but no metadata.
    begun = not inside and isinstance(folder, Path) and folder.is_dir()
    others = [
        name
        for name in files
        if name != ".gitkeep"
        and not is_leftover(name)
        and not (begun and shard_of(name) is not None)
    ]
    if others:
        raise UserError(
            f"paths.dataset {root} holds other files ({others[0]}): name an empty or a new "
            "directory"
        )
    if isinstance(folder, Path):
        folder.mkdir(exist_ok=True)  # a run on other shards may have made it just now


def prune(config: Config, files: Mapping[str, Stat]) -> None:
    """Remove shards and students that the plan does not have, and leftovers of killed runs.

    Args:
        config: all parameters.
        files: the listing of the dataset's folder.
    """
    root, planned = location(config.paths.dataset), len(plan_of(config))

    def is_surplus(name: str) -> bool:
        shard, student = shard_of(name), student_of(name)
        return (
            (shard is not None and shard >= planned)
            or (student is not None and student > config.adaptive.rounds)
            or (name == TAR_SIZES and config.synthesis.captions is None)
            or is_leftover(name)
        )

    surplus = [name for name in files if is_surplus(name)]
    # Records first: if this run is killed here, no shard counts as complete without its tar.
    remove_all(root, [name for name in surplus if name.endswith(".json")])
    remove_all(root, [name for name in surplus if not name.endswith(".json")])
    students = Layout(root).students
    if isinstance(students, Path) and students.is_dir() and not any(students.iterdir()):
        students.rmdir()
