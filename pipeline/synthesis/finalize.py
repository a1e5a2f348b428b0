"""Start and finish a dataset's folder: claim it, remove what is not planned, write index files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.dataset.layout import (
    Layout,
    is_leftover,
    is_metadata,
    marker_of,
    shard_of,
    student_of,
)
from pipeline.dataset.plan import plan_of
from pipeline.errors import UserError
from pipeline.storage import Location, Stat, listing, location, read_bytes, remove_all, write_bytes
from pipeline.synthesis.entries import Entry, entries_of
from pipeline.synthesis.index_files import index_files
from pipeline.synthesis.shard_states import check_complete, survey
from pipeline.teachers.teacher import Teacher


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
            or is_leftover(name)
        )

    surplus = [name for name in files if is_surplus(name)]
    # Records first: if this run is killed here, no shard counts as complete without its tar.
    remove_all(root, [name for name in surplus if name.endswith(".json")])
    remove_all(root, [name for name in surplus if not name.endswith(".json")])
    students = Layout(root).students
    if isinstance(students, Path) and students.is_dir() and not any(students.iterdir()):
        students.rmdir()


def write_dataset_files(config: Config, teacher: Teacher) -> None:
    """Write the index files from the records of all shards, and remove surplus files and markers.

    A file whose content stays the same is not written again.

    Raises:
        UserError: shards are missing or stale.
    """
    root = location(config.paths.dataset)
    files = listing(root)
    prune(config, files)
    entries: list[Entry] = []
    states: dict[int, str] = {}
    for found in survey(config, teacher.digest, files=files):
        states[found.shard.number] = found.state
        entries += entries_of([found])
    check_complete(states)
    for name, data in index_files(config, entries, teacher.digest).items():
        same_size = name in files and files[name].size == len(data)
        if not same_size or read_bytes(root / name) != data:
            write_bytes(root / name, data)
    remove_all(root, [name for name in files if marker_of(name)])
