"""Invert members of the zoo with the defaults, and measure what students learn.

    python -m benchmarks.zoo.study TEACHERS OUT [NAME ...] [--half development]

``TEACHERS`` is the folder of ``python -m benchmarks.zoo.train``. For each member the parameters say
only what a user must say of a teacher, the number of images and that of steps. One student has the
teacher's architecture, the other one is of another family. ``OUT`` gets ``NAME.json``, the picture
``NAME.png``, and the dataset and the students in ``NAME``. A second call continues. It repeats what
was measured with other ``--images``, ``--steps`` or ``--set``. It does not compare the code of the
objective: name another ``OUT`` after a change of it. ``--set`` tries another default.
``python -m benchmarks.zoo.report`` prints the table.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.zoo.data import fit
from benchmarks.zoo.members import DEVELOPMENT, MEMBERS, UNSEEN, WIDE, Member, halves, judge_of
from benchmarks.zoo.train import preprocessing, test_tar, weights
from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.stream import ordered_batches
from pipeline.device.threads import use_threads
from pipeline.errors import UserError
from pipeline.evaluation.accuracy import evaluate, share
from pipeline.evaluation.verdict import dataset_verdict
from pipeline.execution.runner import JobsFailed, open_runner
from pipeline.exit_codes import report_errors
from pipeline.objective.bn_statistics import batchnorm_layers
from pipeline.params import parse_overrides, parse_params
from pipeline.reports.files import report_synthesis
from pipeline.stages.distill import distill_students
from pipeline.stages.synthesize import synthesize
from pipeline.storage import write_bytes, write_json
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.networks import build_network, load_weights
from pipeline.teachers.predict import predict
from pipeline.teachers.teacher import Teacher

CHUNK = 250
PLAIN, RESIDUAL = "plain", "residual"

log = logging.getLogger("zoo")


@dataclass(frozen=True)
class Student:
    """A student of a teacher: ``own`` has its architecture, ``other`` is of another family."""

    kind: str
    family: str
    arguments: dict[str, Any]


def students(member: Member) -> tuple[Student, Student]:
    """The two students. The other one is plain for residual teachers, and residual for others."""
    family = RESIDUAL if member.family in (PLAIN, "depthwise", "convnext", "vit") else PLAIN
    shape = {"classes": len(member.data.classes), "channels": member.data.channels}
    return (
        Student("own", member.family, member.arguments),
        Student("other", family, {**shape, **WIDE}),
    )


def configured(name: str, student: Student, options: argparse.Namespace) -> Config:
    """The defaults, and what a user must say."""
    member, out = MEMBERS[name], options.out / name
    values = {
        "teacher": {
            "source": member.source,
            "arguments": member.arguments,
            "weights": str(weights(options.teachers, name)),
            "classes": len(member.data.classes),
            "class_names": list(member.data.classes),
            "input": member.input,
        },
        "student": {
            "source": f"benchmarks.zoo.networks:{student.family}",
            "arguments": student.arguments,
        },
        "synthesis": {"images": options.images},
        "distillation": {"steps": options.steps},
        "evaluation": {"data": str(test_tar(options.teachers, member.on))},
        "execution": {"workers": 1},
        "paths": {
            "dataset": str(out / "dataset"),
            "students": str(out / f"students-{student.kind}"),
            "reports": str(out / "reports"),
        },
    }
    return parse_params(values, name, parse_overrides(options.set))


def study(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Make the images and the students of a member, and return what was measured."""
    member = MEMBERS[name]
    facts: dict[str, Any] = {
        "name": name,
        "half": halves()[name],
        "data": member.on,
        "family": member.family,
        **asked(options),
    }
    seconds: dict[str, float] = {}
    for student in students(member):
        config = configured(name, student, options)
        teacher = load_checked_teacher(config, "dataset", "reports")
        if student.kind == "own":
            started = time.perf_counter()
            with open_runner(config, config.synthesis.threads) as run:
                made = synthesize(config, teacher, run)
            write_bytes(options.out / f"{name}.png", report_synthesis(config, made).read_bytes())
            seconds["synthesis"] = time.perf_counter() - started
            started = time.perf_counter()
            facts |= confirmations(name, config, teacher, options)
            seconds["judge"] = time.perf_counter() - started
        started = time.perf_counter()
        with open_runner(config, config.distillation.threads) as run:
            distill_students(config, teacher, run)
        seconds[student.kind] = time.perf_counter() - started
        report = evaluate(config, teacher)
        right, of = report["student_accuracy"], report["teacher_accuracy"]
        facts |= {
            "teacher_accuracy": of,
            f"{student.kind}_family": student.family,
            f"{student.kind}_accuracy": right,
            f"{student.kind}_share": round(right / max(of, 1e-6), 6),
        }
    return {**facts, "seconds": {key: round(value, 1) for key, value in seconds.items()}}


def confirmations(
    name: str, config: Config, teacher: Teacher, options: argparse.Namespace
) -> dict[str, Any]:
    """The share of images whose label the teacher and the judge confirm.

    The judge's accuracy on the real test images, shown to it in the same way, stands next to it.
    The verdict has all its signs.
    """
    judge = judge_of(name)
    made = images_of(list(Dataset.planned(config).paths.tars))
    real = images_of([test_tar(options.teachers, MEMBERS[name].on)])
    answers = predict(teacher.network, teacher.preprocessing, made[0], CHUNK).argmax(1)
    says = [judged(judge, name, pixels, options.teachers) for pixels, _ in (made, real)]
    return {
        "batchnorm": bool(batchnorm_layers(teacher.network)),
        "teacher_confirms": share(answers, made[1]),
        "judge": judge,
        "judge_confirms": share(says[0], made[1]),
        "judge_accuracy": share(says[1], real[1]),
        "verdict": dataset_verdict(config, teacher).report(),
    }


def judged(judge: str, name: str, pixels: Tensor, teachers: Path) -> Tensor:
    """The classes that a judge gives to images of the member ``name``.

    The judge sees the images in its own size and colours, and chooses among the member's classes.
    """
    member, data = MEMBERS[judge], MEMBERS[judge].data
    network = build_network(member.source, member.arguments, "teacher")
    load_weights(network, weights(teachers, judge), "teacher")
    seen = fit(pixels, data.channels, data.side)
    logits = predict(network.eval(), preprocessing(member), seen, CHUNK)
    return logits[:, [data.classes.index(each) for each in MEMBERS[name].data.classes]].argmax(1)


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """What identifies a result, besides the name of the member."""
    return {"images": options.images, "steps": options.steps, "changes": sorted(options.set)}


def is_done(name: str, options: argparse.Namespace) -> bool:
    path = options.out / f"{name}.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return all(found.get(key) == value for key, value in asked(options).items())


def images_of(tars: list[Any]) -> tuple[Tensor, Tensor]:
    pixels, labels = zip(*ordered_batches(tars, CHUNK), strict=True)
    return torch.cat(pixels), torch.cat(labels)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teachers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="members; all of the half")
    parser.add_argument("--half", choices=(DEVELOPMENT, UNSEEN), default=DEVELOPMENT)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with report_errors() as outcome:
        options = parser.parse_args(arguments)
        options.out.mkdir(parents=True, exist_ok=True)
        use_threads(1)
        half, failed = halves(), []
        for name in options.names or [name for name in MEMBERS if half[name] == options.half]:
            if is_done(name, options):
                continue
            needed = [each for each in (name, judge_of(name)) if not _trained(options, each)]
            if needed:
                log.warning("%s: run benchmarks.zoo.train %s first", name, " ".join(needed))
                failed.append(name)
                continue
            try:
                facts = study(name, options)
            except (JobsFailed, UserError) as error:
                log.warning("%s: %s", name, error)
                failed.append(name)
                continue
            write_json(options.out / f"{name}.json", facts)
            log.info("%s: own %.1f %%", name, 100 * facts["own_share"])
        if failed:
            raise JobsFailed(f"members without a result: {', '.join(failed)}")
    return outcome.code


def _trained(options: argparse.Namespace, name: str) -> bool:
    return weights(options.teachers, name).is_file()


if __name__ == "__main__":
    sys.exit(main())
