"""The format ``imagefolder``: a folder for each class, with one PNG file for each image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.dataset.layout import PNG, SPLIT
from pipeline.dataset.tar import image_kind
from pipeline.errors import UserError
from pipeline.exporting.new_folder import in_new_folder
from pipeline.exporting.source import Source

MOST_NAME = 50  # characters of a class name in the name of its folder
_UNSAFE = re.compile(r"[^\w-]+")


@in_new_folder
def write_image_folder(source: Source, folder: Path) -> str:
    """Write ``train/CLASS/KEY.png``: the bytes of the PNG files in the shards, unchanged.

    Every class gets a folder, also a class without an image. The folders sort in the order of the
    classes. So the index that a program gives to a class is always that of the teacher. Without
    labels the files are ``train/KEY.png``.

    Raises:
        UserError: the images are no PNG files.
    """
    need_png(source, "imagefolder")
    if not source.labelled:
        return _write_flat(source, folder / SPLIT)
    names = folder_names(source.class_names if source.dataset.class_names else [], source)
    folders = [folder / SPLIT / name for name in names]
    for path in folders:
        path.mkdir(parents=True)
    for sample in source.samples():
        assert sample.label is not None
        (folders[sample.label] / f"{sample.key}.{PNG}").write_bytes(sample.data)
    return f"""`{SPLIT}/CLASS/KEY.{PNG}`: a folder for each class. Its number is the label.

```python
from torchvision.datasets import ImageFolder

data = ImageFolder("{SPLIT}", allow_empty=True)  # allow_empty: a class may have no image
```"""


def _write_flat(source: Source, folder: Path) -> str:
    """Write ``KEY.png`` of images without labels."""
    folder.mkdir()
    for sample in source.samples():
        (folder / f"{sample.key}.{PNG}").write_bytes(sample.data)
    return f"""`{SPLIT}/KEY.{PNG}`: one file for each image. The images have no labels.

```python
import datasets

data = datasets.load_dataset("imagefolder", data_dir=".", split="{SPLIT}")
```"""


def need_png(source: Source, name: str) -> None:
    """Refuse images that PNG cannot hold.

    Raises:
        UserError: the images have another number of channels than PNG.
    """
    channels = source.input.channels
    if image_kind(channels) != PNG:
        raise UserError(
            f"{name} needs PNG images, and PNG has no images of {channels} channels: export to npz"
        )


def folder_names(names: Sequence[str], source: Source) -> list[str]:
    """A folder name for each class: its index, and what is harmless of its name.

    Args:
        names: the names of the classes; empty where the teacher has none.
        source: has the number of classes.
    """
    classes = source.dataset.classes
    digits = len(str(classes - 1))
    numbers = [f"{label:0{digits}d}" for label in range(classes)]
    if not names:
        return numbers
    safe = [_UNSAFE.sub("_", name)[:MOST_NAME].strip("_") for name in names]
    return [f"{a}_{b}" if b else a for a, b in zip(numbers, safe, strict=True)]
