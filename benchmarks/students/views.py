"""Compare students of stored views, which have no teacher, with students of `distill`.

    python -m benchmarks.students.views OUT PARAMS [--views 1 2 4 8] [--pictures 0]
        [--set KEY=VALUE ...]

The script makes the dataset of the parameter file PARAMS in OUT, with the largest of the numbers of
views. It trains ``examples/train_from_shards.py`` on the first 1, 2, 4 ... views of each image, and
`distill` for the same number of steps: plain, which is without procedural pictures, adversarial
images and imitation, and as PARAMS says. With ``--pictures N`` the example's student also learns
from the views of the dataset and of N procedural pictures together. OUT keeps all of it; a result
that OUT/results.json has is not computed again. Each line has the accuracy on ``evaluation.data``,
and the bytes of the views as a share of the bytes of the images: of their contents, and of the
members of the tar with headers and padding.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.students.labels import answers, make_student
from examples.train_from_shards import train
from pipeline.config.schema import Config
from pipeline.dataset.arrays import decode_array, encode_array
from pipeline.dataset.layout import VIEWS
from pipeline.dataset.stream import ordered_batches
from pipeline.dataset.tar import image_part, read_tar
from pipeline.device.seeding import seed_all
from pipeline.device.threads import use_threads
from pipeline.evaluation.inputs import real_data
from pipeline.execution.runner import open_runner
from pipeline.exit_codes import report_errors
from pipeline.params import load_params, parse_overrides
from pipeline.stages.synthesize import synthesize
from pipeline.storage import write_json
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.networks import build_network

Rows = dict[str, Callable[[], float]]
PICTURES: dict[str, Any] = {  # changes that make a dataset of pictures that nobody optimised
    "synthesis.objective": {"start": "procedural", "draws": 20},
    "synthesis.iterations": 0,
}
BLOCK = 512  # bytes; a member of a tar has a header of one block, and fills its last block


def first_views(tars: list[Path], folder: Path, views: int) -> tuple[list[Path], float, float]:
    """Copy shards with the first ``views`` views of each image.

    Returns:
        The copies, and the bytes of the views as a share of those of the images: of the contents,
        and of the members with their headers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for tar in tars:
        with tarfile.open(folder / tar.name, "w") as copy:
            for key, parts, _ in read_tar(tar):
                stored = decode_array(parts[VIEWS])
                parts[VIEWS] = encode_array(np.ascontiguousarray(stored[:views]))
                sizes[True].append(len(parts[VIEWS]))
                sizes[False].append(len(image_part(parts)))
                for extension, data in parts.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    copy.addfile(info, io.BytesIO(data))
    plain = {kind: sum(of) for kind, of in sizes.items()}
    padded = {kind: sum(BLOCK * (1 - size // -BLOCK) for size in of) for kind, of in sizes.items()}
    copies = [folder / tar.name for tar in tars]
    return copies, plain[True] / plain[False], padded[True] / padded[False]


def from_shards(config: Config, tars: list[Path], data: Path) -> float:
    """Train the example's student on shards; return its accuracy on real images."""
    seed_all(config.distillation.seeds[0])
    network = build_network(config.student.source, config.student.arguments, "student")
    train(network, [str(tar) for tar in tars], config.distillation.steps)
    network.eval()
    right = total = 0
    with torch.no_grad():
        for pixels, labels in ordered_batches([data], 500):
            logits = network((pixels / 255 - 0.45) / 0.25)
            right, total = right + int((logits.argmax(1) == labels).sum()), total + len(labels)
    return right / total


def by_distill(config: Config, tars: list[Path], data: Path, out: Path, **changes: float) -> float:
    """Train a student with the teacher at hand; return its accuracy on real images."""
    changed = config.distillation.model_copy(update=changes)
    config = config.model_copy(update={"distillation": changed})
    teacher = load_checked_teacher(config)
    student = make_student(config, teacher, tars, out)
    logits, labels = answers(student, teacher, data)
    return (logits.argmax(1) == labels).double().mean().item()


def made(config: Config) -> list[Path]:
    """Make a dataset, or finish it; return its shards."""
    with open_runner(config) as run:
        synthesize(config, load_checked_teacher(config), run)
    return sorted((Path(config.paths.dataset) / "train").glob("*.tar"))


def by_teacher(config: Config, tars: list[Path], data: Path, out: Path) -> Rows:
    """The rows of `distill`: plain, and as the parameters say."""
    names = ("procedural", "adversarial", "imitation")
    asked = {name: getattr(config.distillation, name) for name in names}
    return {
        "distill, " + ", ".join(f"{name} {value:g}" for name, value in changes.items()): (
            functools.partial(by_distill, config, tars, data, out, **changes)
        )
        for changes in (dict.fromkeys(names, 0.0), asked)
    }


def by_views(config: Config, tars: list[Path], data: Path, out: Path, views: list[int]) -> Rows:
    """The rows of the example's students, one for each number of views."""
    rows: Rows = {}
    for number in views:
        copies, plain, padded = first_views(tars, out / f"views-{number}", number)
        rows[f"{number} views, {plain:.1%} of the images, {padded:.1%} with headers"] = (
            functools.partial(from_shards, config, copies, data)
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("params", type=Path)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--pictures", type=int, default=0, help="procedural pictures")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    with report_errors() as outcome:
        options = parser.parse_args(arguments)
        out, most = options.out, max(options.views)
        places = {f"paths.{name}": str(out / name) for name in ("dataset", "students", "reports")}
        given = {**parse_overrides(options.set), **places, "synthesis.views": most}
        config = load_params(options.params, given)
        data = real_data(config)
        tars = made(config)
        use_threads(config.distillation.threads)
        rows = by_teacher(config, tars, data, out) | by_views(
            config, tars, data, out, options.views
        )
        if options.pictures:
            drawn = PICTURES | {"synthesis.images": options.pictures}
            drawn["paths.dataset"] = str(out / "pictures")
            both = tars + made(load_params(options.params, given | drawn))
            rows[f"{most} views, and those of {options.pictures} procedural pictures"] = (
                functools.partial(from_shards, config, both, data)
            )
        path = out / "results.json"
        results = json.loads(path.read_text()) if path.is_file() else {}
        for name, measure in rows.items():
            key = f"{name}, {config.distillation.steps} steps, seed {config.distillation.seeds[0]}"
            if key not in results:
                results[key] = measure()
                write_json(path, results)
            sys.stdout.write(f"{results[key]:.2%} {key}\n")
            sys.stdout.flush()
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
