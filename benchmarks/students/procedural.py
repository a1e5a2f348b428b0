"""Draw docs/procedural.png: procedural pictures of 32, 64 and 8 pixels, not selected.

python -m benchmarks.students.procedural [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from pipeline.procedural import procedural_pictures
from pipeline.teachers.preprocessing import NATURAL_DEVIATION, NATURAL_MEAN

PICTURE = Path("docs/procedural.png")
CELL = 68  # pixels of the sheet for each picture and its white border
# The shape of the pictures, by how much each is enlarged, and the rows of the sheet.
PARTS = (((3, 32, 32), 2, 4), ((3, 64, 64), 1, 2), ((1, 8, 8), 8, 1))
COLUMNS = 12


def sheet(seed: int = 0) -> NDArray[np.uint8]:
    """Return a sheet of pictures, uint8 ``[height, width, 3]``."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for shape, scale, number in PARTS:
        pictures = procedural_pictures(number * COLUMNS, shape, generator)
        shares = pictures * NATURAL_DEVIATION + NATURAL_MEAN
        pixels = F.interpolate(shares, scale_factor=scale).expand(-1, 3, -1, -1)
        border = (CELL - pixels.shape[-1]) // 2
        cells = F.pad(pixels, [border] * 4, value=1.0)
        rows.append(cells.view(number, COLUMNS, 3, CELL, CELL).permute(0, 3, 1, 4, 2).flatten(0, 1))
    whole: NDArray[np.uint8] = (torch.cat(rows).flatten(1, 2) * 255).round().byte().numpy()
    return whole


if __name__ == "__main__":
    Image.fromarray(sheet()).save(Path(sys.argv[1]) if sys.argv[1:] else PICTURE, optimize=True)
