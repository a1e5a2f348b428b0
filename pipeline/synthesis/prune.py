"""Remove files of the dataset that its plan does not have."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pipeline.config.schema import Config
from pipeline.dataset.layout import (
    TAR_SIZES,
    Layout,
    is_leftover,
    marker_of,
    record_name,
    rows_name,
    shard_name,
    shard_of,
    student_name,
    student_of,
    tar_name,
)
from pipeline.dataset.plan import plan_of
from pipeline.dataset.record_files import records_of
from pipeline.dataset.records import ShardRecord
from pipeline.distillation.job import proven_files
from pipeline.storage import (
    Location,
    Stat,
    digest_file,
    json_bytes,
    location,
    read_bytes,
    remove_all,
)

log = logging.getLogger(__name__)


def prune(config: Config, files: Mapping[str, Stat]) -> None:
    """Remove shards and students that the plan does not have, and leftovers of killed runs.

    A file is removed only if a record of this project names its digest. Markers and temporary files
    have names that only this project uses.

    Args:
        config: all parameters.
        files: the listing of the dataset's folder, which is claimed.
    """
    root, planned = location(config.paths.dataset), len(plan_of(config))
    surplus = [name for name in files if _is_surplus(name, planned, config.adaptive.rounds)]
    if config.synthesis.captions is None and TAR_SIZES in files:
        surplus.append(TAR_SIZES)
    numbers = {n for name in surplus if (n := shard_of(name)) is not None}
    rounds = {n for name in surplus if (n := student_of(name)) is not None}
    proven: list[str] = [name for name in surplus if is_leftover(name) or marker_of(name)]
    if TAR_SIZES in surplus and _is_of_records(root, files):
        proven.append(TAR_SIZES)
    records: list[str] = []
    for number, record, _ in records_of(root, sorted(numbers), files):
        if record is not None and record.shard == shard_name(number):
            proven += _recorded_files(root, record, files)
            records.append(record_name(number))
    for round_ in sorted(rounds):
        *others, last = [path.suffix for path in proven_files(Layout(root).student(round_))] or [""]
        proven += [student_name(round_, suffix[1:]) for suffix in others]
        records += [student_name(round_, last[1:])] if last else []
    # Records last: they prove that the files are of this project, also after a kill at this point.
    remove_all(root, proven)
    remove_all(root, records)
    _warn_of_unproven(root, sorted({*surplus} - {*proven, *records}))
    students = Layout(root).students
    if isinstance(students, Path) and students.is_dir() and not any(students.iterdir()):
        students.rmdir()


def _is_surplus(name: str, shards: int, rounds: int) -> bool:
    shard, student = shard_of(name), student_of(name)
    return (
        (shard is not None and shard >= shards)
        or (student is not None and student > rounds)
        or is_leftover(name)
    )


def _is_of_records(root: Location, files: Mapping[str, Stat]) -> bool:
    """Whether the index of tar sizes says of each shard what the shard's record says."""
    numbers = sorted({n for name in files if (n := shard_of(name)) is not None})
    sizes = {
        PurePosixPath(tar_name(number)).name: record.images
        for number, record, _ in records_of(root, numbers, files)
        if record is not None
    }
    return bool(sizes) and read_bytes(root / TAR_SIZES) == json_bytes(sizes)


def _recorded_files(root: Location, record: ShardRecord, files: Mapping[str, Stat]) -> list[str]:
    """The tar and the Parquet file of a shard, if they have the digests of its record."""
    number = int(record.shard)
    return [
        name
        for name in (tar_name(number), rows_name(number))
        if name in files
        and name in record.files
        and digest_file(root / name) == record.files[name].get("sha256")
    ]


def _warn_of_unproven(root: Location, names: list[str]) -> None:
    if names:
        log.warning(
            "%s holds %d files that the plan does not have (%s): they stay, because no record says "
            "that dreamshard wrote them. Move or delete them",
            root,
            len(names),
            ", ".join(names[:4]),
        )
