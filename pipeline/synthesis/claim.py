"""Hold the folders that a run writes, so that no other run writes there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

from pipeline.config.schema import Config
from pipeline.dataset.held_lock import Lock
from pipeline.dataset.lock import locked, reading
from pipeline.storage import listing, location
from pipeline.synthesis.check import check_outputs
from pipeline.synthesis.outputs import claim_output
from pipeline.synthesis.prune import prune
from pipeline.synthesis.replacement import announce_replacement
from pipeline.synthesis.spec import parameters_digest
from pipeline.teachers.teacher import Teacher


@contextlib.contextmanager
def claimed(
    config: Config, teacher: Teacher, only: range | None = None, keep: bool = False
) -> Iterator[Lock]:
    """Hold the dataset's folder for a run, after it was claimed and tidied up.

    Args:
        config: the parameters.
        teacher: the teacher of ``config``.
        only: the run makes only these shards. Then other runs with the same parameters may hold the
            folder too, and no file is removed.
        keep: refuse to replace shards of other parameters.

    Yields:
        The lock of the folder.

    Raises:
        UserError: another run holds the folder, the folder holds other files, or ``keep`` is set
            and the folder holds a dataset of other parameters.
        TryAgainError: the run lost its lock.
    """
    check_outputs(config, "dataset", "reports")
    root = location(config.paths.dataset)
    parameters = None if only is None else parameters_digest(config, teacher.digest)
    with locked(root, "paths.dataset", parameters) as lock:
        files = listing(root)
        claim_output(config, "dataset", files)
        announce_replacement(config, teacher, files, only, keep)
        if only is None:
            prune(config, files)
        yield lock
        lock.check()


@contextlib.contextmanager
def held(config: Config, output: str) -> Iterator[Lock]:
    """Hold the folder of the dataset or of the students alone, after it was claimed.

    Args:
        config: all parameters.
        output: the field of ``paths``: ``dataset`` or ``students``.

    Raises:
        UserError: another run holds the folder, or the folder holds other files.
        TryAgainError: the run lost its lock.
    """
    check_outputs(config, output)
    with locked(location(getattr(config.paths, output)), f"paths.{output}") as lock:
        claim_output(config, output)
        yield lock
        lock.check()


def reading_dataset(config: Config, teacher_digest: str) -> AbstractContextManager[Lock | None]:
    """Keep runs that would change the dataset away from it during a block."""
    root, parameters = location(config.paths.dataset), parameters_digest(config, teacher_digest)
    return reading(root, "paths.dataset", parameters)
