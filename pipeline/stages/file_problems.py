"""Find files and links that do not belong to a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from pipeline.config.schema import Config
from pipeline.dataset.layout import PLACEHOLDERS, Layout, is_lock, marker_of
from pipeline.dataset.odd_files import odd_files
from pipeline.distillation.job import student_problem
from pipeline.stages.authenticate import signature_problems
from pipeline.storage import Location, Stat


def file_problems(root: Location, files: Mapping[str, Stat], expected: Set[str]) -> Iterator[str]:
    """Name each file that is none of the dataset's or no plain file, and an outdated signature.

    Args:
        root: the folder of the dataset.
        files: its listing.
        expected: the names of the files of the dataset.
    """
    yield from signature_problems(root, None)
    odd = odd_files(root, expected)
    for name, kind in odd.items():
        yield (
            f"{name} is {kind}, not a file: remove it, then run verify --repair, or put the file "
            "in its place"
        )
    for name in files:
        known = name in expected or name in odd or name in PLACEHOLDERS
        if not (known or marker_of(name) or is_lock(name)):
            yield f"{name} does not belong to the dataset: move it elsewhere, or delete it"


def student_problems(config: Config, root: Location) -> Iterator[str]:
    """Name each file of a round student that is damaged or missing."""
    for round_ in range(1, config.adaptive.rounds + 1):
        path = Layout(root).student(round_)
        problem = student_problem(path)
        if problem:
            yield f"{path.parent.name}/{problem}"
