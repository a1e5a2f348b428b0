"""Where every file of a dataset lies. No other module spells a folder, a name or a number of one.

    README.md  _info.json  index.json  croissant.json        index files
    provenance.json  train/sizes.json                        more index files
    provenance.json.dsse                                     the signature, where there is one
    train/000000.tar                                         a shard: samples of the members below
    metadata/000000.parquet                                  its rows, one for each image
    metadata/000000.json                                     its record
    metadata/.000000.running.json                            a marker of an unfinished shard
    students/000001.safetensors                              the student of an adaptive round
    dreamshard.json                                          the claim: this project may write here
    .dreamshard.lock                                         the lock of a run that works now

A *name* is the path of a file below the folder of the dataset, such as ``train/000000.tar``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.local_files import TEMPORARY
from pipeline.storage import Location

MarkerKind = Literal["running", "failed"]

SPLIT = "train"
_SHARDS, _METADATA, _STUDENTS = SPLIT, "metadata", "students"
FOLDERS = (_SHARDS, _METADATA, _STUDENTS)

# The index files, each about the whole dataset: lists of shards for other programs, the card, and
# the provenance.
CARD = "README.md"
TIMM_INFO = "_info.json"
WIDS_INDEX = "index.json"
PROVENANCE = "provenance.json"
CROISSANT = "croissant.json"
TAR_SIZES = f"{_SHARDS}/sizes.json"  # only of a dataset with captions; open_clip reads it
SIGNATURE = f"{PROVENANCE}.dsse"  # of the provenance; only a signed dataset has it
INDEX_FILES = (CARD, TIMM_INFO, WIDS_INDEX, CROISSANT, PROVENANCE)

# The claim marks the dataset, the students and the reports as folders of this project.
CLAIM = "dreamshard.json"
# A lock is there during a run. At a URL each run of a shard range has another one, with a number.
LOCK = f"{TEMPORARY}lock"
# Files that other programs put into an empty folder.
PLACEHOLDERS = frozenset({".gitkeep", ".gitignore", ".keep", ".DS_Store"})

# Patterns over many shards, for programs that expand them.
ALL_TARS = f"{_SHARDS}/*.tar"
ALL_ROWS = f"{_METADATA}/*.parquet"

# The members of a sample: ``<key>.<member>``. An image is one of PNG and NPY.
PNG, NPY = "png", "npy"
IMAGES = (PNG, NPY)
CLASS = "cls"
FACTS = "json"
LOGITS = "logits.npy"
VIEWS = "views.npy"
CAPTION = "txt"

_STUDENT_KINDS = ("safetensors", "json", "csv")  # weights, record, log
_SHARD_FILE = re.compile(
    rf"(?:{_METADATA}|{_SHARDS})/\.?(\d{{6,}})\.(?:tar|parquet|json|\w+\.json)"
)
_STUDENT_FILE = re.compile(rf"{_STUDENTS}/(\d{{6}})\.(?:{'|'.join(_STUDENT_KINDS)}|checkpoint)")
_MARKER_FILE = re.compile(rf"{_METADATA}/\.(\d{{6,}})\.(running|failed)\.json")
_LEFTOVER = re.compile(rf"(?:.*/)?{re.escape(TEMPORARY)}[^/]+\.[0-9a-f]{{12}}\.tmp")
_LOCK = re.compile(rf"{re.escape(LOCK)}(?:\.[0-9a-f]{{32}})?")


def shard_name(number: int) -> str:
    """The name of a shard without its folder: ``000000``."""
    return f"{number:06d}"


def sample_key(prefix: str, index: int) -> str:
    """The key of the dataset's ``index``-th image: ``a1b2c3d4-000000000``.

    Args:
        prefix: eight hexadecimal digits, the same for all images of the dataset.
        index: the number of the image in the dataset.
    """
    return f"{prefix}-{index:09d}"


def tar_name(number: int) -> str:
    """The name of a shard's tar: ``train/000000.tar``."""
    return f"{_SHARDS}/{shard_name(number)}.tar"


def rows_name(number: int) -> str:
    """The name of a shard's Parquet file: ``metadata/000000.parquet``."""
    return f"{_METADATA}/{shard_name(number)}.parquet"


def record_name(number: int) -> str:
    """The name of a shard's record: ``metadata/000000.json``."""
    return f"{_METADATA}/{shard_name(number)}.json"


def marker_name(number: int, kind: MarkerKind) -> str:
    """The name of a shard's marker: ``metadata/.000000.running.json``."""
    return f"{_METADATA}/.{shard_name(number)}.{kind}.json"


def student_name(round_: int, kind: str = "safetensors") -> str:
    """The name of a file of the student that ``round_`` competes with."""
    return f"{_STUDENTS}/{shard_name(round_)}.{kind}"


def index_names(captions: bool) -> tuple[str, ...]:
    """The names of a dataset's index files. Only a dataset with captions has the one of open_clip.

    open_clip takes no sample without a caption. With the sizes of the tars it would start, find no
    sample, and wait for one without end.
    """
    return (*INDEX_FILES, TAR_SIZES) if captions else INDEX_FILES


def dataset_names(shards: int, rounds: int, captions: bool) -> set[str]:
    """The names of all files of a finished dataset.

    Args:
        shards: the number of shards of the plan.
        rounds: the number of adaptive rounds, each of which has a student.
        captions: whether samples have captions.
    """
    names = {*index_names(captions), CLAIM}
    for number in range(shards):
        names |= {tar_name(number), rows_name(number), record_name(number)}
    for round_ in range(1, rounds + 1):
        names |= {student_name(round_, kind) for kind in _STUDENT_KINDS}
    return names


def shard_of(name: str) -> int | None:
    """The number of the shard that a tar, a Parquet file, a record or a marker belongs to."""
    match = _SHARD_FILE.fullmatch(name)
    return int(match[1]) if match else None


def student_of(name: str) -> int | None:
    """The round whose student the file belongs to, a checkpoint included."""
    match = _STUDENT_FILE.fullmatch(name)
    return int(match[1]) if match else None


def marker_of(name: str) -> tuple[int, MarkerKind] | None:
    """The shard and the kind of a marker."""
    match = _MARKER_FILE.fullmatch(name)
    if match is None:
        return None
    return int(match[1]), "running" if match[2] == "running" else "failed"


def is_leftover(name: str) -> bool:
    """Whether the name is that of a temporary file of ours, which a killed run left behind."""
    return _LEFTOVER.fullmatch(name) is not None


def is_lock(name: str) -> bool:
    """Whether the name is that of a lock, of a run that works now or was killed."""
    return _LOCK.fullmatch(name) is not None


def shared_lock_name(token: str) -> str:
    """The name, at a URL, of the lock of one run of a shard range."""
    return f"{LOCK}.{token}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of the dataset in the folder ``root``, as locations to read and write.

    Example:
        >>> from pathlib import Path
        >>> print(Layout(Path("data/synthetic")).tar(7))
        data/synthetic/train/000007.tar
    """

    root: Location

    @property
    def metadata(self) -> Location:
        """The folder of rows, records and markers."""
        return self.root / _METADATA

    @property
    def students(self) -> Location:
        """The folder of the adaptive rounds' students."""
        return self.root / _STUDENTS

    def file(self, name: str) -> Location:
        """The file of that name, such as one of :data:`INDEX_FILES`."""
        return self.root / name

    def tar(self, number: int) -> Location:
        """A shard's tar."""
        return self.root / tar_name(number)

    def tars(self, numbers: Iterable[int]) -> tuple[Location, ...]:
        """The tars of several shards, in the order of ``numbers``."""
        return tuple(self.tar(number) for number in numbers)

    def rows(self, number: int) -> Location:
        """A shard's Parquet file."""
        return self.root / rows_name(number)

    def record(self, number: int) -> Location:
        """A shard's record."""
        return self.root / record_name(number)

    def marker(self, number: int, kind: MarkerKind) -> Location:
        """A shard's marker."""
        return self.root / marker_name(number, kind)

    def student(self, round_: int) -> Location:
        """The weights of the student that ``round_`` competes with."""
        return self.root / student_name(round_)
