"""The format ``npz``: one file of NumPy arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.exporting.new_folder import in_new_folder
from pipeline.exporting.source import Source
from pipeline.teachers.preprocessing import Preprocessing

ARRAYS = "data.npz"
LAYOUTS = {"nchw": (0, 1, 2), "nhwc": (1, 2, 0)}
"""The order of an image's axes, from channels, height and width."""


@in_new_folder
def write_npz(
    source: Source, folder: Path, *, normalised: bool = False, layout: str = "nchw"
) -> str:
    """Write ``images``, ``labels``, ``keys`` and ``class_names``, one image at a time.

    Without labels these are ``images`` and ``keys``.

    Args:
        source: the images.
        folder: an empty folder.
        normalised: write float32, ``(pixel / 255 - mean) / std`` as the teacher takes it, and not
            uint8.
        layout: a name of :data:`LAYOUTS`.

    Raises:
        UserError: there is no such layout.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}: write one of {', '.join(LAYOUTS)}")
    axes, kind = LAYOUTS[layout], np.dtype(np.float32 if normalised else np.uint8)
    preprocessing = Preprocessing.of(source.input)
    shape = (len(source), *(source.shape[axis] for axis in axes))
    labels, keys = [], []
    with zipfile.ZipFile(folder / ARRAYS, "w") as archive:
        # Without a ZipInfo the time of the export would be in the file.
        with archive.open(zipfile.ZipInfo("images.npy"), "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": kind.str, "fortran_order": False, "shape": shape}
            )
            for sample in source.samples():
                image: NDArray[np.generic] = np.array(sample.pixels())
                if normalised:
                    image = preprocessing.normalise(torch.from_numpy(image)[None])[0].numpy()
                file.write(image.transpose(axes).tobytes())
                labels.append(sample.label)
                keys.append(sample.key)
        others = {"keys": np.array(keys)}
        if source.labelled:
            others = {"labels": np.array(labels), **others}
            others["class_names"] = np.array(source.class_names)
        for name, array in others.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return _loading(source, kind, shape, layout)


def _loading(source: Source, kind: np.dtype, shape: tuple[int, ...], layout: str) -> str:
    values = "pixels of 0 to 255"
    if kind == np.float32:
        mean, std = list(source.input.mean), list(source.input.std)
        values = f"`(pixel / 255 - mean) / std` with mean {mean} and std {std}"
    others, read = (
        "`labels` (int64), `keys` and `class_names`",
        'images, labels = data["images"], data["labels"]',
    )
    if not source.labelled:
        others, read = "and `keys`", 'images = data["images"]'
    return f"""`{ARRAYS}` holds `images` ({kind.name} {list(shape)}, {layout.upper()}: {values}), \
{others}.

```python
import numpy as np

data = np.load("{ARRAYS}")
{read}
```"""
