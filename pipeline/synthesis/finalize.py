"""Write the index files from the records of all shards."""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.dataset.layout import (
    marker_of,
)
from pipeline.storage import listing, location, read_bytes, remove_all, write_bytes
from pipeline.synthesis.entries import Entry, entries_of
from pipeline.synthesis.index_files import index_files
from pipeline.synthesis.prune import prune
from pipeline.synthesis.shard_states import check_complete, survey
from pipeline.synthesis.staleness import describe_state
from pipeline.teachers.teacher import Teacher


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
        states[found.shard.number] = describe_state(found, teacher.parts)
        entries += entries_of([found])
    check_complete(states)
    for name, data in index_files(config, entries, teacher).items():
        same_size = name in files and files[name].size == len(data)
        if not same_size or read_bytes(root / name) != data:
            write_bytes(root / name, data)
    remove_all(root, [name for name in files if marker_of(name)])
