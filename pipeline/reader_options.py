"""The options of the commands that read finished results: export and report."""

from __future__ import annotations

import argparse

from pipeline.argument_types import positive


def export_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command export."""
    parser.add_argument("dataset", metavar="DATASET", help="the directory or URL of the dataset")
    parser.add_argument(
        "--to", metavar="FORMAT", required=True, help="npz, imagefolder, parquet or hub"
    )
    parser.add_argument(
        "out", metavar="OUT", help="a new directory; for hub the name ORG/NAME of a repository"
    )
    parser.add_argument(
        "--images",
        type=positive,
        metavar="N",
        help="only N images: the first ones of each class, the same number of each",
    )
    parser.add_argument(
        "--normalised",
        action="store_true",
        help="npz: float32 as the teacher takes it, by its mean and std (default: uint8)",
    )
    parser.add_argument(
        "--layout", metavar="LAYOUT", help="npz: nchw or nhwc (channels last); the default is nchw"
    )
    parser.add_argument("--public", action="store_true", help="hub: make the new repository public")


def report_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command report."""
    parser.add_argument(
        "a",
        nargs="?",
        default="params.yaml",
        metavar="A",
        help="a parameter file, a dataset, or the .safetensors file of a student (default: "
        "params.yaml)",
    )
    parser.add_argument("b", nargs="?", metavar="B", help="another one, to compare A with")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="replace one value of the parameter file A; may be repeated",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the page to write (default: index.html, or comparison.html, in the reports of A)",
    )
