"""The claim of an output folder: a folder of a user's own files is never written.

There are three output folders: the dataset, the students and the reports. A run may write into one
of them if the folder is empty, or if it holds the claim. The claim is the file ``dreamshard.json``,
which holds a digest of its content. A folder of an earlier version has no claim. Such a folder is
accepted if an intact record of this project lies in it. The name of a file proves nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.config.schema import Config
from pipeline.dataset.layout import (
    CLAIM,
    PLACEHOLDERS,
    is_leftover,
    is_lock,
    record_name,
    shard_name,
    shard_of,
)
from pipeline.dataset.record_files import records_of
from pipeline.distillation.job import student_problem
from pipeline.errors import UserError
from pipeline.local_files import temporary_name
from pipeline.storage import (
    Location,
    Stat,
    digest_json,
    json_bytes,
    listing,
    location,
    read_many,
    remove,
    write_bytes,
)

GRIDS = "grids"  # The folder of pictures in the reports.


@dataclass(frozen=True, slots=True)
class Output:
    """A kind of output folder.

    Attributes:
        concerns: whether a file of that name lies where this project writes. Other files neither
            prove nor disturb anything.
        is_proven: whether an intact record among files of these names proves that an earlier
            version of this project wrote the folder.
    """

    concerns: Callable[[str], bool]
    is_proven: Callable[[Location, Iterable[str]], bool]


def claim_bytes(output: str) -> bytes:
    """The content of a claim.

    Args:
        output: the field of ``paths``: ``dataset``, ``students`` or ``reports``.
    """
    facts = {
        "project": "dreamshard",
        "output": output,
        "about": "dreamshard writes and deletes its own files in this folder",
    }
    return json_bytes({**facts, "sha256": digest_json(facts)})


def claim_output(config: Config, output: str, files: Mapping[str, Stat] | None = None) -> Location:
    """Write the claim into an output folder that may be written and has none.

    Args:
        config: all parameters.
        output: the field of ``paths``: ``dataset``, ``students`` or ``reports``.
        files: the listing of the folder, where known.

    Returns:
        The folder.

    Raises:
        UserError: the folder holds files that no run of this project wrote.
    """
    root = location(getattr(config.paths, output))
    if not check_claim(root, output, files):
        write_bytes(root / CLAIM, claim_bytes(output))
    return root


def check_claim(root: Location, output: str, files: Mapping[str, Stat] | None = None) -> bool:
    """Make sure that an output folder may be written. Nothing is changed.

    Returns:
        Whether the folder has its claim.

    Raises:
        UserError: the folder holds files that no run of this project wrote.
    """
    if isinstance(root, Path) and (root / CLAIM).is_dir():
        raise UserError(
            f"paths.{output} {root}: {CLAIM} is a folder, not a file: move it elsewhere, then run "
            "the command again"
        )
    (text,) = read_many([root / CLAIM])
    if text == claim_bytes(output):
        return True
    kind = _OUTPUTS[output]
    names = [name for name in (listing(root) if files is None else files) if kind.concerns(name)]
    others = [
        name
        for name in names
        if name not in PLACEHOLDERS and not is_lock(name) and not is_leftover(name)
    ]
    if others and not kind.is_proven(root, names):
        raise UserError(
            f"paths.{output} {root} holds other files ({others[0]}): name an empty or a new "
            "directory"
        )
    return False


def _holds_record(root: Location, names: Iterable[str]) -> bool:
    numbers = [n for name in names if (n := shard_of(name)) is not None and name == record_name(n)]
    return any(
        record is not None and record.shard == shard_name(number)
        for number, record, _ in records_of(root, numbers)
    )


def _holds_student(root: Location, names: Iterable[str]) -> bool:
    weights = (name for name in names if PurePosixPath(name).suffix == ".safetensors")
    return any(student_problem(root / name) is None for name in weights)


_OUTPUTS = {
    "dataset": Output(concerns=lambda name: True, is_proven=_holds_record),
    "students": Output(concerns=lambda name: "/" not in name, is_proven=_holds_student),
    "reports": Output(
        concerns=lambda name: name.rpartition("/")[0] in ("", GRIDS),
        is_proven=lambda root, names: False,
    ),
}


def check_writable(directory: Location, key: str) -> None:
    """Check before a long run that a file can be written to a directory.

    Args:
        directory: Directory, which is created if it is missing.
        key: Parameter that names the directory, for the message.

    Raises:
        UserError: No file can be written there.
    """
    probe = directory / temporary_name("probe")
    try:
        if isinstance(directory, Path):
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        else:
            write_bytes(probe, b"")
            remove(probe)
    except OSError as error:
        reason = error.strerror or str(error).removeprefix(f"{probe}: ")
        raise UserError(f"{key} {directory} cannot be written: {reason}") from error
