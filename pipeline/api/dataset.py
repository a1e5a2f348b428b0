"""The class ``Dataset`` of ``import pipeline``: a finished dataset that can also be exported."""

from __future__ import annotations

import os
from typing import Any

from pipeline.dataset.dataset import Dataset as StoredDataset
from pipeline.exporting.formats import export


class Dataset(StoredDataset):
    __doc__ = StoredDataset.__doc__

    def export(
        self,
        to: str,
        out: str | os.PathLike[str],
        *,
        images: int | None = None,
        **options: Any,
    ) -> str:
        """Write the images in the format of another program.

        Every shard is compared with the digest in the provenance before it is used.

        Args:
            to: ``npz``, ``imagefolder``, ``parquet`` or ``hub``.
            out: a new folder, which also gets the card and the provenance. It appears when it is
                complete. For ``hub`` the name ``ORG/NAME`` of a repository.
            images: how many images: the first ones of each class, the same number of each, or one
                more of some. None exports all.
            options: ``normalised=True`` (npz) writes float32 as the teacher takes it,
                ``layout="nhwc"`` (npz) puts the channels last, ``public=True`` (hub) makes the
                new repository public.

        Returns:
            One line: which images were exported, and where they are.

        Raises:
            UserError: a value is wrong, ``out`` exists, or a shard was changed. Nothing was
                written then.
        """
        return export(self, to, os.fspath(out), images, **options)
