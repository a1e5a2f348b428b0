"""The share of a dataset's images that another network gives the intended label.

    python -m benchmarks.agreement --params examples/cifar10.yaml \
        --set teacher.arguments='{blocks: 5}' --set teacher.weights=path/to/resnet32.th

The overrides name the other network; the dataset is the one that the parameter file describes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from pipeline.cli import report_errors
from pipeline.config import load_config, parse_overrides
from pipeline.storage import listing, location
from pipeline.streaming import ordered_batches
from pipeline.teacher import load_teacher


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    with report_errors() as outcome:
        options = parser.parse_args()
        config = load_config(Path(options.params), parse_overrides(options.set))
        judge = load_teacher(config.teacher, torch.device("cpu"))
        root = location(config.paths.dataset)
        shards = [root / name for name in listing(root) if name.endswith(".tar")]
        agreed = total = 0
        for pixels, labels in ordered_batches(shards, 256):
            with torch.no_grad():
                answers = judge.network(judge.preprocessing.normalise(pixels)).argmax(1)
            agreed += int((answers == labels).sum())
            total += len(labels)
        sys.stdout.write(f"{agreed} of {total} images, {agreed / total:.1%}\n")
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
