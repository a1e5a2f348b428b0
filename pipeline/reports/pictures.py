"""Pictures: grids of images with the teacher's confidence, curves, and similar pairs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from pipeline.config.schema import Config
from pipeline.config.teacher import TeacherConfig
from pipeline.dataset.layout import FACTS, Layout
from pipeline.dataset.plan import Plan, plan_of
from pipeline.dataset.tar import Pixels, decode_image, image_part, read_tar
from pipeline.storage import Location, digest_bytes, location, read_bytes, write_bytes
from pipeline.synthesis.outputs import GRIDS

matplotlib.use("Agg")
ROWS, COLUMNS = 8, 16
_SEAL = "dreamshard"  # Name of the text in a PNG file that holds the digest of its pixels.
SIDE, TEXT = 64, 14
Cell = tuple[Pixels, float | None]
"""An image, uint8 ``[C, H, W]``, and the teacher's probability of its class, if it has one."""
Curve = dict[str, NDArray[np.float64]]
"""``iteration`` and, by name, the mean of each loss term at that iteration; ``[points]`` each."""


def draw_grids(config: Config, reports: Path) -> list[Path]:
    """Draw ``grids/round-N.png`` for each round, and delete grids of rounds that no longer exist.

    A grid has one column for each class of the round, up to ``COLUMNS``. The teacher's probability
    for the class stands below each image. Images without labels fill the columns in turn.

    Args:
        config: The configuration. The shards of its dataset are read.
        reports: The reports folder.

    Returns:
        The pictures, in the order of the rounds.
    """
    layout, root = plan_of(config), location(config.paths.dataset)
    paths = []
    for round_ in range(config.adaptive.rounds + 1):
        cells = _pick(layout, root, round_, config.teacher.labelled)
        path = reports / GRIDS / f"round-{round_}.png"
        draw_cells(cells, column_names(config.teacher), path)
        paths.append(path)
    for path in (reports / GRIDS).glob("round-*.png"):
        if path not in paths and _is_sealed(path):
            path.unlink()
    return paths


def column_names(teacher: TeacherConfig) -> Sequence[str] | None:
    """The names above the columns of a grid; None for the numbers of the classes."""
    return teacher.class_names if teacher.labelled else [""] * COLUMNS


def draw_cells(cells: Mapping[int, list[Cell]], names: Sequence[str] | None, path: Path) -> None:
    """Draw a grid of images with one column for each class.

    Args:
        cells: For each class, its images.
        names: Names of the classes; None for their numbers.
        path: PNG file to write.
    """
    write_bytes(path, _png(_grid(cells, names)))


def draw_synthesis_curves(curves: Mapping[int, Curve], path: Path) -> None:
    """Draw each loss term over the iterations, with one line for each round."""
    from matplotlib import pyplot

    names = [name for name in curves[max(curves)] if name != "iteration"]
    figure, axes = pyplot.subplots(1, len(names), figsize=(3 * len(names), 2.8))
    for axis, name in zip(axes, names, strict=True):
        for round_, curve in sorted(curves.items()):
            if name in curve:
                axis.plot(
                    curve["iteration"], curve[name], color=f"C{round_}", label=f"round {round_}"
                )
        axis.set(title=name, xlabel="iteration")
        if all(value > 0 for line in axis.lines for value in line.get_ydata()):
            axis.set_yscale("log")
    axes[-1].legend(fontsize=8)
    save_figure(figure, path)


def draw_distillation_curves(logs: Sequence[Location], path: Path) -> None:
    """Draw loss, agreement with the teacher and accuracy over the steps, a line for each student.

    Args:
        logs: CSV files of the students.
        path: PNG file to write.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(10, 2.8))
    for log in logs:
        rows = read_log(log)
        for axis, name in zip(axes, ("loss", "agreement", "accuracy"), strict=True):
            axis.plot([r["step"] for r in rows], [r[name] for r in rows], label=log.stem)
            axis.set(title=name, xlabel="step")
    axes[0].set_yscale("log")
    axes[-1].legend(fontsize=8)
    save_figure(figure, path)


def draw_pairs(pairs: Sequence[tuple[Pixels, Pixels]], path: Path) -> None:
    """Draw pairs of images, uint8 ``[C, H, W]`` each, one image above the other."""
    canvas = Image.new("RGB", (len(pairs) * (SIDE + 4), 2 * SIDE), "white")
    for column, pair in enumerate(pairs):
        for row, pixels in enumerate(pair):
            canvas.paste(_cell(pixels), (2 + column * (SIDE + 4), row * SIDE))
    write_bytes(path, _png(canvas))


def read_log(path: Location) -> list[dict[str, float]]:
    """Read the rows of a student's log."""
    rows = csv.DictReader(io.StringIO(read_bytes(path).decode(), newline=""))
    return [{name: float(value) for name, value in row.items()} for row in rows]


def _pick(layout: Plan, root: Location, round_: int, labelled: bool) -> dict[int, list[Cell]]:
    """Read the first images of up to ``COLUMNS`` classes, evenly spaced among those of the round.

    Only tars that hold one of these images are read.
    """
    numbers = layout.of_round(round_)
    firsts = [layout.bounds[number][1] for number in numbers]
    labels = layout.labels[firsts[0] : layout.bounds[numbers[-1]][2]]
    if not labelled:
        labels = np.arange(len(labels), dtype=np.int16) % COLUMNS
    made = np.unique(labels)  # a small dataset has fewer classes than the teacher
    shown = made[np.linspace(0, len(made) - 1, min(len(made), COLUMNS)).round().astype(int)]
    places = [firsts[0] + np.flatnonzero(labels == label)[:ROWS] for label in shown]
    wanted = np.sort(np.concatenate(places))
    cells: dict[int, list[Cell]] = {int(label): [] for label in shown}
    for index in np.unique(np.searchsorted(firsts, wanted, side="right") - 1):
        samples = read_tar(Layout(root).tar(numbers[index]))
        for place, (_, parts, _) in enumerate(samples, start=firsts[index]):
            if place in wanted:
                row = cells[int(labels[place - firsts[0]])]
                row.append((decode_image(image_part(parts)), _probability(parts[FACTS])))
    return cells


def _probability(facts: bytes) -> float | None:
    value = json.loads(facts).get("teacher_prob")
    return None if value is None else float(value)


def _grid(cells: Mapping[int, list[Cell]], names: Sequence[str] | None) -> Image.Image:
    rows = max(map(len, cells.values()))
    canvas = Image.new("RGB", (len(cells) * (SIDE + 4), TEXT + rows * (SIDE + TEXT)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (label, row) in enumerate(cells.items()):
        x = 2 + column * (SIDE + 4)
        draw.text((x, 1), (names[label] if names else str(label))[:10], fill="black")
        for index, (pixels, probability) in enumerate(row):
            y = TEXT + index * (SIDE + TEXT)
            canvas.paste(_cell(pixels), (x, y))
            if probability is not None:
                colour = "black" if probability > 0.5 else "red"
                draw.text((x, y + SIDE), f"{probability:.1%}", fill=colour)
    return canvas


def as_picture(pixels: Pixels) -> Image.Image:
    """Pixels uint8 ``[C, H, W]`` as a grey or a colour picture of the same size."""
    array = pixels[0] if pixels.shape[0] == 1 else _colours(pixels).transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(array))


def _cell(pixels: Pixels) -> Image.Image:
    large = max(pixels.shape[1:]) > SIDE
    how = Image.Resampling.LANCZOS if large else Image.Resampling.NEAREST
    return as_picture(pixels).convert("RGB").resize((SIDE, SIDE), how)


def _colours(pixels: Pixels) -> Pixels:
    """Return red, green and blue of pixels ``[C, H, W]``.

    With other than 3 or 4 channels, each colour is the mean of a third of the channels.
    """
    if pixels.shape[0] in (3, 4):
        return pixels[:3]
    spread = np.repeat(pixels, 3, axis=0)  # No third is empty, even with two channels.
    return np.stack([part.mean(0) for part in np.array_split(spread, 3)]).astype(np.uint8)


def _png(image: Image.Image) -> bytes:
    """Encode a picture with the digest of its pixels, which proves later who drew it."""
    buffer, info = io.BytesIO(), PngInfo()
    info.add_text(_SEAL, digest_bytes(image.tobytes()))
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _is_sealed(path: Path) -> bool:
    """Whether this project drew a picture, and nobody changed it."""
    try:
        with Image.open(path) as image:
            return bool(digest_bytes(image.tobytes()) == image.info.get(_SEAL))
    except (OSError, SyntaxError, ValueError):  # Pillow raises these for files of other kinds.
        return False


def save_figure(figure: matplotlib.figure.Figure, path: Path) -> None:
    """Write a figure as a PNG file, and close the figure."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, dpi=110)
    pyplot.close(figure)
    write_bytes(path, buffer.getvalue())
