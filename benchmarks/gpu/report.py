"""Tables of ``benchmarks.gpu.loop`` and ``benchmarks.gpu.students`` for the documentation."""

from __future__ import annotations

from typing import Any

WORDS = {
    "ratio": "over the published recipe, at least",
    "ms_an_image": "milliseconds an image at 200 iterations, at most",
    "share_of_peak": "of the measured peak, at least",
}


def table(report: dict[str, Any]) -> str:
    """Format machine, rates, errors and requirements of all measured networks."""
    lines = _head(report)
    peak = report["bf16_matrix_peak_tflops"]
    lines.append(f"bf16 matrix peak: {peak} TFLOP/s; {report['seconds']} s in all")
    lines += [
        "",
        "| network | loop | image-iterations/s | over the published | range | ms an image "
        "| peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in report["cases"].items():
        lines += _rates(f"{name}, {case['side']} px, batch {case['batch']}", case["loops"])
    lines += ["", "| network | engine | loss | gradient | bound | |"]
    lines.append("|---|---|---|---|---|---|")
    for name, case in report["cases"].items():
        lines += [_error(name, row) for row in case["errors"]]
    lines += ["", "| network | kernel | calls | share of the time |", "|---|---|---|---|"]
    for name, case in report["cases"].items():
        lines += [
            f"| {name} | `{row['kernel'][:80]}` | {row['calls']} | {row['share']:.1%} |"
            for row in case["kernels"]
        ]
    lines += ["", "| network | wanted | bar | reached | |", "|---|---|---|---|---|"]
    for name, case in report["cases"].items():
        lines += [
            f"| {name} | {WORDS[key]} | {bar['bar']} | {bar['reached']} "
            f"| {'met' if bar['met'] else 'missed'} |"
            for key, bar in case["bars"].items()
        ]
        lines.append(
            f"| {name} | | | {case['tflops']} TFLOP/s, {case['share_of_peak']:.1%} of the peak, "
            f"{case['flops_an_image_iteration'] / 1e9:.3f} GFLOP an image-iteration | |"
        )
    return "\n".join(lines) + "\n"


def students_table(report: dict[str, Any]) -> str:
    """Format accuracies with their requirements, and the seconds of each stage."""
    lines = _head(report)
    lines += ["", "| network | learns from | real accuracy | wanted | aimed at | |"]
    lines.append("|---|---|---|---|---|---|")
    for row in report["results"]:
        source = f"{row['images']:,} images of {row['teacher']}" if row["images"] else "real images"
        wanted, aim = ("-" if row[k] is None else f"{row[k]:.1%}" for k in ("bar", "aim"))
        word = {True: "met", False: "missed", None: ""}[row["met"]]
        lines.append(
            f"| {row['network']} | {source} | {row['accuracy']:.2%} | {wanted} | {aim} | {word} |"
        )
    lines += ["", "| stage | seconds |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in report["seconds"].items()]
    if not report["finished"]:
        lines += ["", "Not finished: the same command goes on."]
    return "\n".join(lines) + "\n"


def _head(report: dict[str, Any]) -> list[str]:
    lines = ["A toy on a CPU: no result.", ""] if report["toy"] else []
    lines += [f"{name}: {value}" for name, value in report["machine"].items()]
    return lines + [f"warning: {text}" for text in report["warnings"]]


def _rates(name: str, loops: dict[str, Any]) -> list[str]:
    lines = []
    for loop, row in loops.items():
        low, high = row["ratio_range"]
        memory = row["peak_memory_gib"]
        lines.append(
            f"| {name} | {loop} | {row['image_iterations_per_second']:,.0f} "
            f"| {row['ratio']:.2f}x | {low:.2f}-{high:.2f} | {row['ms_an_image']:.2f} "
            f"| {'-' if memory is None else f'{memory:.1f} GiB'} |"
        )
    return lines


def _error(name: str, row: dict[str, Any]) -> str:
    bounds = row["bounds"]
    bound = f"{bounds['loss']:.2g}, {bounds['gradient']:.2g}" if bounds else "-"
    return (
        f"| {name} | {row['engine']} | {row['loss']:.2g} | {row['gradient']:.2g} | {bound} "
        f"| {'right' if row['right'] else 'WRONG'} |"
    )
