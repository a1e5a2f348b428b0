"""The command export."""

from __future__ import annotations

import argparse

from pipeline.dataset.dataset import Dataset
from pipeline.exporting.formats import export


def run_export(options: argparse.Namespace) -> int:
    """Write the images of a finished dataset in another format."""
    given = {name: getattr(options, name) for name in ("normalised", "layout", "public")}
    chosen = {name: value for name, value in given.items() if value}
    dataset = Dataset(options.dataset)
    print(export(dataset, options.to, options.out, options.images, **chosen))
    return 0
