"""Results of docs/results/students.md: a table, plots, and a choice without real images.

    python -m benchmarks.students.report [--images 2048] [--steps 2000] [--device cuda]

The script reads ``docs/students.json`` and prints a table of the rows of one size. The table also
says how well each measure orders synthetic datasets like the real accuracy of their students
(Spearman's rank correlation). ``docs/students.png`` shows all results, except those with at most
half of the best accuracy, which are in the table only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from benchmarks.students.study import COLLECTED, REAL
from pipeline.reports.pictures import save_figure

PLOT = Path("docs/students.png")
MEASURES = {  # Measures, and what they need.
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

SHOWN = {  # Measures in the plot.
    "foreign_loss": "Eq. 1 on images of another recipe (foreign_loss)",
    "statistics_gap": "gap to the teacher's BatchNorm statistics",
    "class_vendi_per_100": "Vendi score within a class, of 100 images",
    "frechet_distance": "Fréchet distance to real images",
}


def by_row(
    results: list[dict[str, Any]], images: int, steps: int, device: str
) -> dict[str, dict[str, Any]]:
    """For each row of one size, compute means over its seeds, and list their ``accuracies``."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if (result["images"], result["steps"], result["device"]) == (images, steps, device):
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
    """Compute the rank correlation of each measure with the students' accuracy.

    Return it with the number of rows of synthetic images. Measures that never vary are left out.
    """
    found = {}
    for measure in MEASURES:
        has = [row for name, row in rows.items() if measure in row and name != REAL]
        if len(has) > 2 and len({row[measure] for row in has}) > 1:
            pairs = [(row[measure], row["student_accuracy"]) for row in has]
            found[measure] = (float(spearmanr(pairs).statistic), len(has))
    return found


def table(rows: dict[str, dict[str, Any]], results: list[dict[str, Any]]) -> str:
    """Format a table in Markdown: a line for each row, the best student first.

    A line for each measure follows: its rank correlation over the rows that learnt, over results of
    all sizes that learnt, and over all ``results``.
    """
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
    lines += ["", "| measure | needs | rows | results | all results |", "|---" * 5 + "|"]
    every = {str(number): r for number, r in enumerate(results) if r["row"] != REAL}
    kinds = [predictions(kind) for kind in (learnt(rows), learnt(every), every)]
    for measure in sorted(kinds[-1], key=lambda name: -abs(kinds[-1][name][0])):
        cells = [
            "{:+.2f} ({})".format(*kind[measure]) if measure in kind else "-" for kind in kinds
        ]
        lines.append(f"| {measure} | {MEASURES[measure]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def learnt(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Select results with more than half of the best accuracy; others would compress the plot."""
    best = max((row["student_accuracy"] for row in rows.values()), default=0.0)
    return {name: row for name, row in rows.items() if row["student_accuracy"] > best / 2}


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Plot the students' accuracy over each measure, with and without real images.

    A point is a result of synthetic images that taught something. The title has the rank
    correlation.
    """
    from matplotlib import pyplot

    every = learnt({str(n): r for n, r in enumerate(results) if r["row"] != REAL})
    found = predictions(every)
    figure, axes = pyplot.subplots(1, len(SHOWN), figsize=(4 * len(SHOWN), 3.4), sharey=True)
    counts = sorted({row["images"] for row in every.values()})
    for axis, (measure, name) in zip(axes, SHOWN.items(), strict=True):
        for number, images in enumerate(counts):  # Each size keeps its colour in all plots.
            points = [
                (row[measure], 100 * row["student_accuracy"])
                for row in every.values()
                if row["images"] == images and measure in row
            ]
            if points:
                label, colour = f"{images:,} images", f"C{number}"
                axis.plot(*zip(*points, strict=True), "o", color=colour, alpha=0.6, label=label)
        axis.set_xlabel(name)
        if measure in found:
            axis.set_title("rank correlation {:+.2f} ({})".format(*found[measure]), fontsize=9)
    axes[0].set_ylabel("student, % of real images right")
    if axes[-1].has_data():
        axes[-1].legend(fontsize=8)
    save_figure(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    options = parser.parse_args()
    results = json.loads(COLLECTED.read_text())
    rows = by_row(results, options.images, options.steps, options.device)
    plot(results, PLOT)
    sys.stdout.write(table(rows, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
