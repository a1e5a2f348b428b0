"""The study of docs/results/students.md: students on CIFAR-10, for each change of the recipe.

    python -m benchmarks.students.study OUT [ROW ...] [--images 2048] [--steps 2000] [--seed 0]

``OUT`` holds ``resnet20.th``, ``resnet32.th`` and ``test-00000.tar``, and ``train-*.tar`` for the
row ``real``. It keeps all results, and a second call continues from them. A row is a name of
:data:`ROWS`, which are changes to ``examples/cifar10.yaml``, or such changes themselves:
``section.key=value`` separated by spaces. All rows have the same number of images and of
distillation steps. The result of a row, with the measures of ``python -m pipeline measure``, goes
into ``OUT/results``. ``--collect`` gathers all results in ``docs/students.json``. Real images only
measure, except in the row ``real``. If ``OUT`` has ``foreign.tar``, images of a recipe that no row
learns from (for example those of ``benchmarks.students.curves``), each student is measured on them
too, also one whose result exists.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipeline.config.schema import Config
from pipeline.dataset.stream import ordered_batches
from pipeline.dataset.tar import Sample, write_tar
from pipeline.distillation.job import DistillJob, tars_digest
from pipeline.distillation.train_student import distill
from pipeline.evaluation.accuracy import evaluate, load_student
from pipeline.evaluation.dataset_measures import measure
from pipeline.evaluation.student_measures import on_foreign
from pipeline.execution.runner import JobsFailed, open_runner
from pipeline.exit_codes import report_errors
from pipeline.params import load_params, parse_overrides
from pipeline.reports.pictures import read_log
from pipeline.stages.distill import distill_students
from pipeline.stages.final_students import STUDENT, weights_path
from pipeline.stages.synthesize import synthesize
from pipeline.storage import Location, digest_json, replacing, write_json
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.teacher import Teacher, load_teacher

PARAMS = Path("examples/cifar10.yaml")
FOREIGN = Path("foreign.tar")
REAL, COLLECTED = "real", Path("docs/students.json")
SHARD = 1024
KEYS = ("row", "images", "steps", "seed", "device")  # The fields that identify a result.

log = logging.getLogger(__name__)

RECIPE = (
    "distillation.temperature=50 distillation.adversarial=0.4 distillation.imitation=50 "
    "distillation.procedural=0.5"
)
HALF = (  # For 1,024 images.
    "adaptive.rounds=1 adaptive.images=512 adaptive.training.steps=500 "
    "adaptive.training.adversarial=0 adaptive.training.procedural=0 adaptive.training.temperature=8"
)
SELECTED = 'synthesis.objective={"start":"procedural","draws":20}'

ROWS: dict[str, str] = {
    "spread": "",  # The file itself, with the settings of `common`.
    "plain": "synthesis.objective={}",
    "starts": 'synthesis.objective={"start":"varied"}',
    "wider": "synthesis.objective.classification=0.14 "
    "synthesis.objective.classification_spread=2.0 synthesis.objective.tv_spread=2.3",
    "ambiguous": "synthesis.objective.ambiguity=0.5",
    "adaptive": "adaptive.rounds=2 adaptive.images=512 adaptive.training.steps=500 "
    "adaptive.compete=10",
    "warm": "adaptive.rounds=2 adaptive.images=512 adaptive.training.steps=500 "
    "adaptive.compete=10 adaptive.warm=0.5",
    "adaptive-half": HALF,
    "adaptive-half-adversarial": f"{HALF} distillation.adversarial=0.4",
    "sgd": "distillation.optimizer=sgd",
    "whole": "synthesis.objective.coarse=0.0",
    "imitation": "distillation.imitation=10.0",
    "adversarial": "distillation.adversarial=0.4",
    "recipe": RECIPE,
    "recipe-unmixed": f"{RECIPE} distillation.procedural=0",
    "recipe-procedural-unmixed": f"synthesis.iterations=0 {SELECTED} {RECIPE} "
    "distillation.procedural=0",
    "recipe-procedural": f"synthesis.iterations=0 {SELECTED} {RECIPE}",
    REAL: "",
    "noise": 'synthesis.iterations=0 synthesis.objective={"start":"white"}',
    "noise-selected": "synthesis.iterations=0 "
    'synthesis.objective={"start":"white","units":"teacher","draws":20}',
    "procedural": 'synthesis.iterations=0 synthesis.objective={"start":"procedural"}',
    "procedural-selected": f"synthesis.iterations=0 {SELECTED}",
    "procedural-starts": "synthesis.objective.start=procedural",
    "selected-starts": "synthesis.objective.start=procedural synthesis.objective.draws=20",
    "deepdream": 'synthesis.objective={"preset":"deepdream-cifar10"} synthesis.iterations=2000',
    "published": 'synthesis.objective={"preset":"deepinversion-cifar10"} synthesis.iterations=2000',
}


def common(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of all students: files in ``out``, amounts, threads."""
    return {
        "teacher.weights": str(out / "resnet20.th"),
        "evaluation.verifier.weights": str(out / "resnet32.th"),
        "evaluation.data": str(out / "test-00000.tar"),
        "synthesis.images": options.images,
        "distillation.steps": options.steps,
        "distillation.threads": options.threads,
        "execution.device": options.device,
        "distillation.procedural": 0.0,  # These three are parts of the row `recipe`.
        "distillation.adversarial": 0.0,
        "distillation.imitation": 0.0,
        "distillation.temperature": 8.0,  # All rows except those about the temperature.
    }


def configured(out: Path, row: str, options: argparse.Namespace) -> Config:
    """Return the parameters of a row. Rows with the same images share them."""
    overrides = {
        **common(out, options),
        "synthesis.shard_size": SHARD,
        "synthesis.seed": options.seed,
        "distillation.seeds": [options.seed],
        "adaptive.training.threads": options.threads,
        "execution.workers": options.workers,
        **parse_overrides(ROWS.get(row, row).split()),
    }
    config = load_params(PARAMS, overrides)
    rounds = config.adaptive.rounds * config.adaptive.images
    if rounds:  # The total number of images is the same.
        overrides["synthesis.images"] = options.images - rounds
        config = load_params(PARAMS, overrides)
    teacher = [config.teacher.arguments, Path(str(config.teacher.weights)).name]
    made_of = [*teacher, config.synthesis, config.adaptive if rounds else None, row == REAL]
    images = digest_json([str(part) for part in made_of])[:12]
    student = digest_json([images, str(config.distillation), str(config.student)])[:12]
    overrides |= {
        "paths.dataset": str(out / "images" / images),
        "paths.students": str(out / "students" / student),
        "paths.reports": str(out / "reports" / student),
    }
    return load_params(PARAMS, overrides)


def row(out: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Make the images, the student and the measures of a row, or read those of an earlier call.

    Return them with the seconds that this call took.
    """
    config = configured(out, name, options)
    teacher = load_checked_teacher(config, "dataset", "reports").to(torch.device(options.device))
    started = time.perf_counter()
    with open_runner(config, config.synthesis.threads) as run:
        if name == REAL:
            write_real(out, Path(config.paths.dataset), options.images)
        else:
            synthesize(config, teacher, run)
    synthesis = time.perf_counter() - started
    with open_runner(config, config.distillation.threads) as run:
        if name == REAL:
            shard = Path(config.paths.dataset) / "train/000000.tar"
            run(distill, [tar_job(config, teacher, shard, REAL)], REAL)
        else:
            distill_students(config, teacher, run)
    result = {
        "row": name,
        "changes": ROWS.get(name, name),
        "images": options.images,
        "steps": options.steps,
        "seed": options.seed,
        "device": options.device,
        "synthesis_seconds": round(synthesis, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "last_loss": last_loss(weights_path(config, STUDENT, options.seed).with_suffix(".csv")),
        **evaluate(config, teacher),
    }
    if name != REAL:
        result |= measure(config, teacher)[0]
    return result


def last_loss(log: Location) -> float:
    """Compute the mean of Eq. 1 over the last tenth of a student's log.

    The images are augmented differently in each step. Without real images, this loss measures how
    well the student imitates its teacher.
    """
    losses = [row["loss"] for row in read_log(log)]
    last = losses[-max(1, len(losses) // 10) :]
    return round(sum(last) / len(last), 4)


def asked(out: Path, name: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure the student of a row on the foreign images, if there are any."""
    if not (foreign := out / FOREIGN).is_file():
        return {}
    config = configured(out, name, options)
    teacher = load_teacher(config.teacher, torch.device(options.device))
    student = load_student(config, teacher, STUDENT, options.seed)
    return on_foreign(student, teacher, foreign)


def write_real(out: Path, dataset: Path, count: int) -> None:
    """Write the first real training images as one shard."""
    batches = ordered_batches(sorted(out.glob("train-*.tar")), 1)
    samples = (
        Sample(f"{index:09d}", pixels[0].numpy(), int(label), {"cls": int(label)})
        for index, (pixels, label) in enumerate(islice(batches, count))
    )
    (dataset / "train").mkdir(parents=True, exist_ok=True)
    with replacing(dataset / "train/000000.tar") as file:
        write_tar(file, samples)


def tar_job(config: Config, teacher: Teacher, shard: Path, name: str) -> DistillJob:
    """Return the job that trains a student on the images of one tar."""
    seed = config.distillation.seeds[0]
    return DistillJob(
        name=name,
        teacher=config.teacher,
        teacher_digest=teacher.digest,
        student=config.student,
        training=config.distillation,
        shards=(shard,),
        dataset=tars_digest([shard]),
        seed=seed,
        output=weights_path(config, STUDENT, seed),
    )


def collect(out: Path) -> None:
    """Gather all results, the newest of each kind, together with earlier collections."""
    rows = json.loads(COLLECTED.read_text()) if COLLECTED.is_file() else []
    rows += [json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))]
    latest = {tuple(row[key] for key in KEYS): row for row in rows}
    write_json(COLLECTED, [latest[key] for key in sorted(latest)])


def shown(name: str, options: argparse.Namespace) -> bool:
    """Make and print the result of a row unless it exists, and return whether this succeeded.

    Rows after a failing one are made all the same.
    """
    key = digest_json([name, *(getattr(options, k) for k in KEYS[1:])])[:12]
    path = options.out / "results" / f"{key}.json"
    try:
        result = json.loads(path.read_text()) if path.is_file() else {}
        if not result:
            write_json(path, result := row(options.out, name, options))
        if "foreign_loss" not in result:
            write_json(path, result | asked(options.out, name, options))
    except JobsFailed as error:
        log.warning("row %s: %s", name, error)
        return False
    sys.stdout.write(path.read_text())
    sys.stdout.flush()
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--collect", action="store_true", help="into docs/students.json")
    with report_errors() as outcome:
        options = parser.parse_args()
        failed = [name for name in options.rows if not shown(name, options)]
        if options.collect:
            collect(options.out)
        if failed:
            raise JobsFailed(f"rows that failed: {', '.join(failed)}")
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
