"""What the study of docs/students.md found: its table, its plots, and a choice without real data.

    python -m benchmarks.students_report [--images 2048] [--steps 2000]
    python -m benchmarks.students_report OUT --cross ROW ... [--seed 0] [--held 1]

The first reads ``docs/students.json`` and writes a table of the rows of one size, with how well
each measure orders those of made images as their students' real accuracy does (Spearman's rank
correlation), and ``docs/students.png``, the rows that learnt more than half as well as the best.
The second asks students of ``OUT`` (of ``benchmarks.students``) about images of every one of these
rows that were made with another seed, and no student has seen: how often does each agree with the
teacher? No real image is used. It adds to ``docs/cross.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.students import COLLECTED, KEYS, REAL, configured
from pipeline.cli import report_errors
from pipeline.config import Config
from pipeline.diversity import look
from pipeline.evaluation import load_student, share
from pipeline.pictures import save_figure
from pipeline.storage import write_json
from pipeline.students import STUDENT
from pipeline.teacher import Teacher, load_teacher

PLOT, CROSS = Path("docs/students.png"), Path("docs/cross.json")
MEASURES = {  # and what they need
    "verifier_agreement": "another network",
    "frechet_distance": "real images",
    "precision": "real images",
    "recall": "real images",
    "density": "real images",
    "coverage": "real images",
    "class_cosine": "-",
    "class_vendi_per_100": "-",
    "statistics_gap": "-",
    "teacher_entropy": "-",
    "teacher_margin": "-",
    "near_duplicates": "-",
    "student_disagreement": "a student",
    "foreign_agreement": "a student",
    "foreign_loss": "a student",
}


def by_row(results: list[dict[str, Any]], images: int, steps: int) -> dict[str, dict[str, Any]]:
    """Of each row of one size: means over its seeds, and ``accuracies``, theirs."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if (result["images"], result["steps"]) == (images, steps):
            rows.setdefault(result["row"], []).append(result)
    return {
        name: {
            **{
                measure: statistics.mean(result[measure] for result in of_row)
                for measure in ("agreement", "student_accuracy", *MEASURES)
                if all(measure in result for result in of_row)
            },
            "accuracies": [result["student_accuracy"] for result in of_row],
        }
        for name, of_row in rows.items()
    }


def predictions(rows: dict[str, dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """Of each measure that differs: its rank correlation with the students' accuracy, and over how
    many rows of images that were made."""
    found = {}
    for measure in MEASURES:
        has = [row for name, row in rows.items() if measure in row and name != REAL]
        if len(has) > 2 and len({row[measure] for row in has}) > 1:
            pairs = [(row[measure], row["student_accuracy"]) for row in has]
            found[measure] = (float(spearmanr(pairs).statistic), len(has))
    return found


def table(rows: dict[str, dict[str, Any]], results: list[dict[str, Any]]) -> str:
    """Markdown: a line a row, the best student first, then a line a measure: how well it orders
    the rows, and all ``results`` of whatever size."""
    shown = ("verifier_agreement", "frechet_distance", "class_cosine", "class_vendi_per_100")
    lines = [
        "| row | student | seeds | agrees with the teacher | " + " | ".join(shown) + " |",
        "|---" * (4 + len(shown)) + "|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["student_accuracy"]):
        each = ", ".join(f"{value:.2%}" for value in row["accuracies"])
        values = " | ".join(f"{row[key]:.3f}" if key in row else "-" for key in shown)
        lines.append(
            f"| `{name}` | {row['student_accuracy']:.2%} | {each} | {row['agreement']:.1%} "
            f"| {values} |"
        )
    lines += ["", "| measure | needs | of these | all results |", "|---|---|---|---|"]
    of_rows = predictions(rows)
    made = [result for result in results if result["row"] != REAL]
    of_all = predictions({str(number): result for number, result in enumerate(made)})
    for measure, (value, count) in sorted(of_all.items(), key=lambda item: -abs(item[1][0])):
        own = "{:+.2f} ({})".format(*of_rows[measure]) if measure in of_rows else "-"
        lines.append(f"| {measure} | {MEASURES[measure]} | {own} | {value:+.2f} ({count}) |")
    return "\n".join(lines) + "\n"


def learnt(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those with more than half of the best student's accuracy: others would squeeze them."""
    best = max((row["student_accuracy"] for row in rows.values()), default=0.0)
    return {name: row for name, row in rows.items() if row["student_accuracy"] > best / 2}


def plot(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """The students' accuracy over each measure."""
    from matplotlib import pyplot

    found = predictions(rows)
    columns = 4
    lines = -(-len(found) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4 * columns, 3.2 * lines), sharey=True)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis, (measure, (value, _)) in zip(axes.flat, found.items(), strict=False):
        for name, row in rows.items():
            if measure in row:
                axis.plot(row[measure], 100 * row["student_accuracy"], "o")
                place = (row[measure], 100 * row["student_accuracy"])
                axis.annotate(name if len(name) <= 24 else f"...{name[-21:]}", place, fontsize=7)
        axis.set_title(f"{measure}: {value:+.2f}", fontsize=9)
        axis.set_ylabel("student, %")
    save_figure(figure, path)


def shards(config: Config) -> list[Path]:
    return sorted(Path(config.paths.dataset).glob("train/*.tar"))


def answers(network: nn.Module, teacher: Teacher, tars: list[Path]) -> Tensor:
    """The class that ``network`` gives each image."""
    return look(replace(teacher, network=network), tars).logits.argmax(1)


def cross(out: Path, names: list[str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Of each row's student (``seed``): agreement on the images of each row (seed ``held``)."""
    held = argparse.Namespace(**{**vars(options), "seed": options.held})
    tars = {name: shards(configured(out, name, held)) for name in names}
    tars = {name: paths for name, paths in tars.items() if paths}
    configs = {name: configured(out, name, options) for name in names}
    teacher = load_teacher(configs[names[0]].teacher, torch.device("cpu"))
    taught = {name: answers(teacher.network, teacher, paths) for name, paths in tars.items()}
    found: dict[str, dict[str, float]] = {}
    for name, config in configs.items():
        student = load_student(config, teacher, STUDENT, options.seed)
        found[name] = {
            other: share(answers(student, teacher, paths), taught[other])
            for other, paths in tars.items()
        }
    return found


def cross_table(found: dict[str, dict[str, float]]) -> str:
    """Markdown: a line a student, a column a kind of images, and their mean."""
    names = list(next(iter(found.values())))
    lines = ["| student of | " + " | ".join(names) + " | mean |", "|---" * (len(names) + 2) + "|"]
    for name, row in found.items():
        values = " | ".join(f"{row[other]:.1%}" for other in names)
        lines.append(f"| `{name}` | {values} | {statistics.mean(row.values()):.1%} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--cross", nargs="+", metavar="ROW")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held", type=int, default=1, help="seed of the images that are asked of")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    with report_errors() as outcome:
        options = parser.parse_args()
        torch.set_num_threads(options.threads)
        if options.cross:
            found = cross(options.out, options.cross, options)
            key = {name: getattr(options, name) for name in (*KEYS[1:], "held")}
            kept = json.loads(CROSS.read_text()) if CROSS.is_file() else []
            kept = [entry for entry in kept if any(entry[k] != v for k, v in key.items())]
            write_json(CROSS, [*kept, {**key, "agreement": found}])
            sys.stdout.write(cross_table(found))
        else:
            results = json.loads(COLLECTED.read_text())
            rows = by_row(results, options.images, options.steps)
            plot(learnt(rows), PLOT)
            sys.stdout.write(table(rows, results))
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
