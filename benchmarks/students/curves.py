"""Quality over iterations on CIFAR-10, of the published DeepInversion and of this project.

    python -m benchmarks.students.curves OUT published ours [--marks 25 50 100 200 400 1000 2000]

``OUT`` is the folder of ``benchmarks.students.study``. It keeps all results, and a killed call
continues when it is repeated. For each recipe and number of iterations the script makes 2,048
images. A student learns from them for ``--steps``. ResNet-32 measures the share of images that have
their label, and the Fréchet distance of its features to those of real images.

The published recipe has a constant learning rate, so that one long run passes through all shorter
ones. Its images come from the fast engine with the published objective, and are clamped to the
pixel range like saved images. The recipe of this project, ``examples/cifar10.yaml``, runs once for
each number of iterations.

``--collect`` measures both loops on the CPU in alternation, the published one as published
(``benchmarks.engine.loop``), and extrapolates to all numbers of iterations. It prints a table, and
writes ``docs/curves.json``, the plot ``docs/curves.png`` and the grid ``docs/curves-images.png``
with a row for each recipe and number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import save_image

from benchmarks.engine.loop import Ours, Published, labels_of, make_teacher, published
from benchmarks.students.study import PARAMS, common, tar_job
from pipeline.config.schema import Config
from pipeline.dataset.stream import ordered_batches
from pipeline.dataset.tar import Sample, write_tar
from pipeline.device.threads import use_threads
from pipeline.distillation.train_student import distill
from pipeline.errors import UserError
from pipeline.evaluation.accuracy import evaluate
from pipeline.evaluation.features import look
from pipeline.evaluation.similarity import frechet_distance
from pipeline.exit_codes import report_errors
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import invert
from pipeline.inversion.starts import starting_images
from pipeline.inversion.views import Views
from pipeline.objective.presets import PRESETS
from pipeline.objective.terms import draw_factors
from pipeline.params import load_params
from pipeline.reports.pictures import save_figure
from pipeline.storage import replacing, write_json
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.teacher import Teacher, load_teacher

PUBLISHED, OURS = "published", "ours"
MARKS = (25, 50, 100, 200, 400, 1000, 2000)
BATCH = 256
COLLECTED = Path("docs/curves.json")


def made(
    teacher: Teacher, config: Config, recipe: str, marks: list[int], folder: Path, images: int
) -> None:
    """Make ``folder/MARK/BATCH.pt`` for each mark: uint8 pixels and labels."""
    through_all = recipe == PUBLISHED
    own = config.objective
    objective = PRESETS["deepinversion-cifar10"] if through_all else own
    runs = [marks] if through_all else [[mark] for mark in marks]
    with Engine(teacher, objective, "auto", compiled=True) as engine:
        for seed, first in enumerate(range(0, images, BATCH)):
            labels = torch.arange(first, min(images, first + BATCH)) % teacher.classes
            for run in runs:
                paths = {mark: folder / f"{mark}" / f"{seed:03d}.pt" for mark in run}
                if all(path.is_file() for path in paths.values()):
                    continue
                if through_all:
                    through(engine, labels, seed, paths)
                    continue
                keep(paths[run[0]], invert(engine, labels, seed, run[0]).pixels, labels)


def through(engine: Engine, labels: Tensor, seed: int, paths: dict[int, Path]) -> None:
    """Run the published recipe once, and keep the images at each mark."""
    teacher, objective = engine.teacher, engine.objective
    generator = torch.Generator().manual_seed(seed)
    images = starting_images(len(labels), teacher.shape, objective.start, generator, teacher.device)
    views = Views(objective, max(paths), generator)
    factors = draw_factors(objective, len(labels), generator).to(teacher.device)
    images, targets = images.requires_grad_(True), labels.to(teacher.device)
    optimizer = torch.optim.Adam(
        [images], lr=objective.learning_rate, betas=objective.betas, fused=True
    )
    for iteration in range(max(paths)):
        view = views.show(images, iteration)
        view.backward(engine.step(view, targets, factors)[0])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if iteration + 1 in paths:
            pixels = teacher.preprocessing.quantise(images.detach())
            keep(paths[iteration + 1], pixels.cpu(), labels)


def keep(path: Path, pixels: Tensor, labels: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save({"pixels": pixels, "labels": labels}, file)


def pack(folder: Path) -> Path:
    """Write the images of a mark as one tar."""
    parts = [torch.load(path) for path in sorted(folder.glob("*.pt"))]
    pixels = torch.cat([part["pixels"] for part in parts]).numpy()
    labels = torch.cat([part["labels"] for part in parts]).tolist()
    samples = (
        Sample(f"{index:09d}", image, label, {"cls": label})
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True))
    )
    path = folder / "images.tar"
    with replacing(path) as file:
        write_tar(file, samples)
    return path


def judged(config: Config, tar: Path, device: torch.device) -> dict[str, float]:
    """Measure the images with ResNet-32."""
    assert config.evaluation.verifier is not None and config.evaluation.data is not None
    verifier = load_teacher(config.evaluation.verifier, device)
    seen, real = look(verifier, [tar]), look(verifier, [Path(config.evaluation.data)])
    return {
        "verifier_agreement": (seen.logits.argmax(1) == seen.labels).double().mean().item(),
        "frechet_distance": frechet_distance(seen.features, real.features),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="*", metavar="published | ours")
    parser.add_argument("--marks", type=int, nargs="+", default=MARKS)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--collect", action="store_true", help="into docs/curves.*")
    with report_errors() as outcome:
        options = parser.parse_args()
        for recipe in options.recipes:
            if recipe not in (PUBLISHED, OURS):
                raise UserError(f"there is no recipe {recipe!r}: use {PUBLISHED} or {OURS}")
            run(options, recipe)
        if options.collect:
            collect(options)
    return outcome.code


def settings(options: argparse.Namespace, folder: Path) -> Config:
    paths = {f"paths.{name}": str(folder / name) for name in ("students", "reports")}
    return load_params(PARAMS, {**common(options.out, options), **paths})


def run(options: argparse.Namespace, recipe: str) -> None:
    folder = options.out / "curves" / recipe
    config = settings(options, folder)
    teacher = load_checked_teacher(config).to(torch.device(options.device))
    use_threads(options.threads)
    made(teacher, config, recipe, sorted(options.marks), folder, options.images)
    for mark in options.marks:
        result = folder / f"{mark}.json"
        if not result.is_file():
            tar, student = pack(folder / str(mark)), settings(options, folder / str(mark))
            distill(tar_job(student, teacher, tar, recipe), options.device, lambda done: None)
            facts = {"recipe": recipe, "iterations": mark, **judged(config, tar, teacher.device)}
            write_json(result, {**facts, **evaluate(student, teacher)})
        sys.stdout.write(result.read_text())
        sys.stdout.flush()


def image_iteration_seconds(options: argparse.Namespace) -> dict[str, float]:
    """Measure the published loop and that of this project: medians of three rounds in alternation.

    The time for compiling is not included.
    """
    labels = labels_of(min(BATCH, options.images))
    config = settings(options, options.out / "curves" / OURS)
    objective = config.objective
    use_threads(options.threads)
    loops: dict[str, tuple[Published | Ours, int]] = {
        PUBLISHED: (published(len(labels)), 10),
        OURS: (Ours(make_teacher(), labels, "auto", True, objective), 50),
    }
    took: dict[str, list[float]] = {PUBLISHED: [], OURS: []}
    for turn in range(4):
        for name, (loop, iterations) in loops.items():
            started = time.perf_counter()
            loop.run(iterations)
            if turn:
                seconds = time.perf_counter() - started
                took[name].append(seconds / iterations / len(labels))
    return {name: statistics.median(values) for name, values in took.items()}


def collect(options: argparse.Namespace) -> None:
    folders = {recipe: options.out / "curves" / recipe for recipe in (PUBLISHED, OURS)}
    paths = [folder / f"{mark}.json" for folder in folders.values() for mark in options.marks]
    rows = [json.loads(path.read_text()) for path in paths if path.is_file()]
    each = image_iteration_seconds(options)
    for row in rows:
        row["seconds"] = round(each[row["recipe"]] * row["iterations"] * options.images, 1)
    write_json(COLLECTED, {"threads": options.threads, "rows": rows})
    plot(rows, COLLECTED.with_suffix(".png"))
    tars = [folders[row["recipe"]] / str(row["iterations"]) / "images.tar" for row in rows]
    draw(tars, COLLECTED.with_name("curves-images.png"))
    sys.stdout.write(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Format a table in Markdown with a line for each recipe and mark.

    Times are relative to the longest run of the published recipe.
    """
    longest = max([row["seconds"] for row in rows if row["recipe"] == PUBLISHED], default=0.0)
    lines = [
        "| recipe | iterations | seconds | faster | student | Fréchet | confirmed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['recipe']} | {row['iterations']:,} | {row['seconds']:,.0f} "
            f"| {longest / row['seconds']:,.1f}x | {row['student_accuracy']:.2%} "
            f"| {row['frechet_distance']:.2f} | {row['verifier_agreement']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot each measure over the seconds that the images took."""
    from matplotlib import pyplot

    names = ("student_accuracy", "frechet_distance", "verifier_agreement")
    figure, axes = pyplot.subplots(1, len(names), figsize=(4.5 * len(names), 3.4))
    for axis, name in zip(axes, names, strict=True):
        for recipe in (PUBLISHED, OURS):
            points = [r for r in rows if r["recipe"] == recipe and name in r]
            axis.plot([r["seconds"] for r in points], [r[name] for r in points], "o-", label=recipe)
            for r in points:
                axis.annotate(str(r["iterations"]), (r["seconds"], r[name]), fontsize=7)
        axis.set(xscale="log", xlabel="seconds", title=name)
    axes[0].legend()
    save_figure(figure, path)


def draw(tars: list[Path], path: Path, columns: int = 20) -> None:
    """Draw the first images of each tar, one row each, as PNG."""
    rows = [next(iter(ordered_batches([tar], columns)))[0] for tar in tars]
    save_image(torch.cat(rows) / 255, path, nrow=columns, pad_value=1)


if __name__ == "__main__":
    sys.exit(main())
