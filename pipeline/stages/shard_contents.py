"""Read the files of one shard, within the size that they can have."""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.dataset.layout import rows_name, tar_name
from pipeline.dataset.row_files import MOST_BYTES
from pipeline.storage import Location, read_many
from pipeline.synthesis.stored_views import FIELDS

_MEGABYTE = 2**20


def read_shard(root: Location, number: int, images: int, config: Config) -> dict[str, bytes]:
    """The names and the bytes of a shard's tar and Parquet file.

    A file is left out if it does not exist, or if it is local and larger than that of ``images``
    images can be.
    """
    shape, classes = config.teacher.input, config.teacher.classes
    image = shape.channels * shape.height * (shape.width + 1) * 1.01 + 2 * classes + MOST_BYTES
    image += 2 * config.synthesis.views * (len(FIELDS) + classes)
    found: dict[str, bytes] = {}
    for name, most in (
        (tar_name(number), (images + 1) * image + _MEGABYTE),
        (rows_name(number), images * MOST_BYTES + 64 * _MEGABYTE),
    ):
        (data,) = read_many([root / name], most)
        if data is not None:
            found[name] = data
    return found
