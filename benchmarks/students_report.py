"""What the study of docs/students.md found: its table, its plots, and a choice without real data.

    python -m benchmarks.students_report [--images 2048] [--steps 2000]
    python -m benchmarks.students_report OUT --cross ROW ... [--seed 0] [--held 1]

The first reads ``docs/students.json`` and writes ``docs/students.png`` and a table of the rows of
one size, with how well each measure orders them as their students' real accuracy does (Spearman's
rank correlation). The second asks students of ``OUT`` (of ``benchmarks.students``) about
images of every one of these rows that were made with another seed, and no student has seen: how
often does each agree with the teacher? No real image is used. It adds to ``docs/cross.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.students import COLLECTED, KEYS, configured
from pipeline.cli import report_errors
from pipeline.config import Config
from pipeline.diversity import look
from pipeline.evaluation import load_student
from pipeline.storage import write_bytes, write_json
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


def ranks(values: list[float]) -> list[float]:
    """From 1; equal values share the mean of theirs."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) + 1) / 2 for value in values]


def spearman(left: list[float], right: list[float]) -> float:
    """Correlation of the ranks, in [-1, 1]; NaN where all of one side are equal."""
    one, two = ranks(left), ranks(right)
    if len(set(one)) < 2 or len(set(two)) < 2:
        return float("nan")
    return statistics.correlation(one, two)


def predictions(rows: dict[str, dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """Of each measure: its rank correlation with the students' accuracy, and over how many rows."""
    found = {}
    for measure in MEASURES:
        has = [row for row in rows.values() if measure in row]
        if len(has) > 2:
            accuracies = [row["student_accuracy"] for row in has]
            found[measure] = (spearman([row[measure] for row in has], accuracies), len(has))
    return found


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line a row, the best student first, then a line a measure."""
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
    lines += ["", "| measure | needs | rank correlation | rows |", "|---|---|---|---|"]
    ordered = sorted(predictions(rows).items(), key=lambda item: -abs(item[1][0]))
    for measure, (value, count) in ordered:
        lines.append(f"| {measure} | {MEASURES[measure]} | {value:+.2f} | {count} |")
    return "\n".join(lines) + "\n"


def plot(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """The students' accuracy over each measure."""
    import io

    import matplotlib

    matplotlib.use("Agg")
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
                axis.annotate(name, (row[measure], 100 * row["student_accuracy"]), fontsize=7)
        axis.set_title(f"{measure}: {value:+.2f}", fontsize=9)
        axis.set_ylabel("student, %")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80)
    pyplot.close(figure)
    write_bytes(path, buffer.getvalue())


def shards(config: Config) -> list[Path]:
    return sorted(Path(config.paths.dataset).glob("train/*.tar"))


def agreements(teacher: Teacher, student: torch.nn.Module, paths: list[Path]) -> float:
    """The share of the images in ``paths`` that a student labels as the teacher does."""
    taught = look(teacher, paths).logits.argmax(1)
    network = Teacher(student, teacher.preprocessing, teacher.shape, teacher.classes, "")
    return (look(network, paths).logits.argmax(1) == taught).double().mean().item()


def cross(out: Path, names: list[str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Of each row's student (``seed``): agreement on the images of each row (seed ``held``)."""
    held = argparse.Namespace(**{**vars(options), "seed": options.held})
    tars = {name: shards(configured(out, name, held)) for name in names}
    missing = [name for name, paths in tars.items() if not paths]
    found: dict[str, dict[str, float]] = {}
    for name in names:
        config = configured(out, name, options)
        teacher = load_teacher(config.teacher, torch.device("cpu"))
        student = load_student(config, teacher, STUDENT, options.seed)
        found[name] = {
            other: round(agreements(teacher, student, paths), 4)
            for other, paths in tars.items()
            if other not in missing
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
            rows = by_row(json.loads(COLLECTED.read_text()), options.images, options.steps)
            plot(rows, PLOT)
            sys.stdout.write(table(rows))
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
