"""Compare the verdicts on good and bad datasets of the zoo with what students learn from them.

    python -m benchmarks.zoo.verdicts TEACHERS OUT [NAME ...] [--half development]

``OUT`` is the folder of ``python -m benchmarks.zoo.study``. Its datasets get the verdict that
``measure`` gives. Each member has four datasets of as many images: ``inverted`` is a part of the
dataset in ``OUT``, ``brief`` was made with 12 iterations, ``repeats`` has 32 of the inverted images
again and again, and ``noise`` is white noise. A student of the teacher's architecture learns from
the images alone. Real images judge the student. A second call continues, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.zoo.members import DEVELOPMENT, MEMBERS, UNSEEN, halves
from benchmarks.zoo.study import configured, images_of, students
from benchmarks.zoo.train import test_tar
from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.device.threads import use_threads
from pipeline.evaluation.accuracy import share
from pipeline.evaluation.trial_student import plain_student, verdict_with_trial
from pipeline.execution.runner import open_runner
from pipeline.exit_codes import report_errors
from pipeline.stages.synthesize import synthesize
from pipeline.storage import write_json
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.predict import predict
from pipeline.teachers.preprocessing import NATURAL_DEVIATION, NATURAL_MEAN
from pipeline.teachers.teacher import Teacher

INVERTED, BRIEF, REPEATS, NOISE = KINDS = ("inverted", "brief", "repeats", "noise")
BRIEF_ITERATIONS, REPEATED, CHUNK = 12, 32, 250
HALF, MOST = 0.5, 0.8  # shares of the teacher's accuracy that the bars name

Result = dict[str, Any]
Images = tuple[Tensor, Tensor]


def images(kind: str, config: Config, teacher: Teacher, options: argparse.Namespace) -> Images:
    """Pixels, uint8 ``[N, C, H, W]``, and labels of a dataset of one kind."""
    count, labels = options.images, torch.arange(options.images) % teacher.classes
    if kind == NOISE:
        noise = torch.randn(count, *teacher.shape, generator=torch.Generator().manual_seed(0))
        pixels = 255 * (NATURAL_MEAN + NATURAL_DEVIATION * noise)
        return pixels.round().clamp(0, 255).to(torch.uint8), labels
    pixels, labels = images_of(list(Dataset.planned(config).paths.tars))
    rows = torch.linspace(0, len(pixels) - 1, count).long()
    if kind == REPEATS:
        rows = rows[torch.linspace(0, count - 1, REPEATED).long()].repeat(-(-count // REPEATED))
    return pixels[rows[:count]], labels[rows[:count]]


def brief(config: Config, teacher: Teacher, count: int) -> Config:
    """Make a dataset with few iterations; return its parameters."""
    folder = Path(config.paths.dataset).with_name("brief")
    paths = config.paths.model_copy(update={"dataset": str(folder)})
    changes = {"images": count, "iterations": BRIEF_ITERATIONS}
    synthesis = config.synthesis.model_copy(update=changes)
    config = config.model_copy(update={"synthesis": synthesis, "paths": paths})
    with open_runner(config, config.synthesis.threads) as run:
        synthesize(config, teacher, run)
    return config


def accuracy(config: Config, teacher: Teacher, pixels: Tensor, real: Images) -> float:
    """The accuracy on real images of a student that learns from ``pixels`` alone."""
    student = plain_student(config, teacher, pixels, config.distillation.steps, seed=1)
    answers = predict(student, teacher.preprocessing, real[0], CHUNK).argmax(1)
    return share(answers, real[1])


def judged(name: str, kind: str, options: argparse.Namespace) -> Result:
    """The verdict on a dataset, and the student's share of the teacher's accuracy."""
    made = argparse.Namespace(**{**vars(options), "images": options.made})
    config = configured(name, students(MEMBERS[name])[0], made)
    teacher = load_checked_teacher(config, "dataset", "reports")
    real = images_of([test_tar(options.teachers, MEMBERS[name].on)])
    of = share(predict(teacher.network, teacher.preprocessing, real[0], CHUNK).argmax(1), real[1])
    source = brief(config, teacher, options.images) if kind == BRIEF else config
    pixels, labels = images(kind, source, teacher, options)
    verdict = verdict_with_trial(config, teacher, pixels, labels).report()
    return {
        "name": name,
        "kind": kind,
        "images": options.images,
        "steps": options.steps,
        "share": accuracy(config, teacher, pixels, real) / of,
        "verdict": verdict,
    }


def table(results: Sequence[Result]) -> str:
    """A row for each dataset, the worst first, and how well the verdict orders them."""
    lines = ["| teacher | dataset | student's share | taught | verdict |", "|---" * 5 + "|"]
    ordered = sorted(results, key=lambda each: float(each["share"]))
    lines += [
        f"| {each['name']} | {each['kind']} | {each['share']:.1%} | "
        f"{each['verdict']['taught']:.2f} | {each['verdict']['level']} |"
        for each in ordered
    ]
    for title, chosen in (("all", results), *((k, _of(results, k)) for k in KINDS)):
        if len(chosen) > 2:
            pairs = [(each["verdict"]["taught"], each["share"]) for each in chosen]
            correlation = spearmanr(*zip(*pairs, strict=True)).statistic
            lines.append(f"Spearman, {title}: {correlation:.2f} of {len(chosen)}")
    bad = [each for each in results if each["share"] < HALF]
    good = [each for each in results if each["share"] > MOST]
    levels = [each["verdict"]["level"] for each in (*bad, *good)]
    lines.append(
        f"below {HALF:.0%}: {levels[: len(bad)].count('usable')} of {len(bad)} called usable; "
        f"above {MOST:.0%}: {len(good) - levels[len(bad) :].count('usable')} of {len(good)} called "
        "doubtful or unusable"
    )
    return "\n".join(lines) + "\n"


def _of(results: Sequence[Result], kind: str) -> list[Result]:
    return [each for each in results if each["kind"] == kind]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teachers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="members; all of the half")
    parser.add_argument("--half", choices=(DEVELOPMENT, UNSEEN), default=DEVELOPMENT)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--made", type=int, default=2048, help="images of each dataset in OUT")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    with report_errors() as outcome:
        options = parser.parse_args(arguments)
        use_threads(1)
        half, results = halves(), []
        for name in options.names or [name for name in MEMBERS if half[name] == options.half]:
            for kind in options.kinds:
                path = options.out / name / f"verdict-{kind}.json"
                if not path.is_file():
                    write_json(path, judged(name, kind, options))
                results.append(json.loads(path.read_text()))
        sys.stdout.write(table(results))
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
