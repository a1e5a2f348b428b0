"""Write the index files of a dataset that was made in ranges of shards."""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.synthesis.check import check_outputs
from pipeline.synthesis.claim import held
from pipeline.synthesis.finalize import write_dataset_files
from pipeline.teachers.teacher import Teacher


def finalize(config: Config, teacher: Teacher) -> None:
    """Write the index files of a dataset that was made in ranges of shards.

    Args:
        config: The parameters.
        teacher: The teacher of ``config``.

    Raises:
        UserError: Shards are missing or stale, or the folder holds other files.
    """
    check_outputs(config, "reports")
    with held(config, "dataset"):
        write_dataset_files(config, teacher)
