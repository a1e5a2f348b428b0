"""Claim a dataset's folder, remove what is not planned, and write the dataset-level files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.dataset.run_markers import MARKER
from pipeline.errors import UserError
from pipeline.storage import Location, Stat, listing, location, read_bytes, remove_all, write_bytes
from pipeline.synthesis.index_files import Entry, dataset_files, entries_of
from pipeline.synthesis.shard_states import check_complete, survey
from pipeline.teachers.teacher import Teacher

_SHARD_FILE = re.compile(r"(?:metadata|train)/\.?(\d{6,})\.(?:tar|parquet|json|\w+\.json)")
_STUDENT_FILE = re.compile(r"students/(\d{6})\.(?:safetensors|json|csv|checkpoint)")
_LEFTOVER = re.compile(r"(?:.*/)?\.[^/]*\.tmp")  # of killed runs


def claim(root: Location, files: Mapping[str, Stat]) -> None:
    """Make sure that ``root``, which holds ``files``, is a dataset of ours, or empty.

    Raises:
        UserError: something else is there, which must not be pruned.
    """
    folder = root / "metadata"
    inside = [
        name for name in files if name.startswith("metadata/") and not _LEFTOVER.fullmatch(name)
    ]
    if any(_SHARD_FILE.fullmatch(name) for name in inside):
        return
    # A first run that was killed may have left a tar alone.
    begun = not inside and isinstance(folder, Path) and folder.is_dir()
    others = [
        name
        for name in files
        if name != ".gitkeep"
        and not _LEFTOVER.fullmatch(name)
        and not (begun and _SHARD_FILE.fullmatch(name))
    ]
    if others:
        raise UserError(
            f"paths.dataset {root} holds other files ({others[0]}): name an empty or new directory"
        )
    if isinstance(folder, Path):
        folder.mkdir(exist_ok=True)  # another range may be as fast


def prune(config: Config, files: Mapping[str, Stat]) -> None:
    """Remove the shards and students that the plan does not have, and what killed runs left."""
    root, planned = location(config.paths.dataset), len(plan_of(config))

    def goes(name: str) -> bool:
        shard, student = _SHARD_FILE.fullmatch(name), _STUDENT_FILE.fullmatch(name)
        return bool(
            (shard and int(shard[1]) >= planned)
            or (student and int(student[1]) > config.adaptive.rounds)
            or _LEFTOVER.fullmatch(name)
        )

    gone = [name for name in files if goes(name)]
    # Records first: what is left is never taken as complete.
    remove_all(root, [name for name in gone if name.endswith(".json")])
    remove_all(root, [name for name in gone if not name.endswith(".json")])
    students = root / "students"
    if isinstance(students, Path) and students.is_dir() and not any(students.iterdir()):
        students.rmdir()


def write_dataset_files(config: Config, teacher: Teacher) -> None:
    """Write the dataset-level files from the records of all shards, and tidy up.

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
    for name, data in dataset_files(config, entries, teacher.digest).items():
        same_size = name in files and files[name].size == len(data)
        if not same_size or read_bytes(root / name) != data:
            write_bytes(root / name, data)
    remove_all(root, [name for name in files if MARKER.fullmatch(name)])
