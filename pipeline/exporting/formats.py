"""The formats of ``export`` by name, and the one function that runs them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pipeline.dataset.dataset import Dataset
from pipeline.errors import UserError
from pipeline.exporting.hub import upload
from pipeline.exporting.image_folder import write_image_folder
from pipeline.exporting.npz import write_npz
from pipeline.exporting.parquet import write_parquet
from pipeline.exporting.source import open_source

FORMATS: dict[str, Callable[..., str]] = {
    "npz": write_npz,
    "imagefolder": write_image_folder,
    "parquet": write_parquet,
    "hub": upload,
}
"""Each format: ``(source, out, **options)`` writes the images to ``out`` and returns its place.

The keyword arguments of the function are the options that the format takes.
"""


def export(dataset: Dataset, to: str, out: str, images: int | None, **options: Any) -> str:
    """Export a dataset.

    Args:
        dataset: a finished dataset.
        to: a name of :data:`FORMATS`.
        out: a new folder; for the Hub the name of a repository.
        images: how many images, the same number of each class; None for all.
        options: the options of the format.

    Returns:
        One line: which images were exported, and where they are.

    Raises:
        UserError: the format, an option or the dataset is wrong. Nothing was written then.
    """
    if to not in FORMATS:
        raise UserError(f"there is no format {to!r}: write one of {', '.join(FORMATS)}")
    known = list(inspect.signature(FORMATS[to]).parameters)[2:]
    extra = [name for name in options if name not in known]
    if extra:
        takes = f"only {', '.join(known)}" if known else "no option"
        raise UserError(f"the format {to} has no option {extra[0]}: it takes {takes}")
    source = open_source(dataset, images)
    place = FORMATS[to](source, out, **options)
    return f"exported {len(source)} of {len(dataset)} images to {place}: {source.which}"
