"""Train students of large CIFAR-10 teachers on a GPU, and compare them with accuracies of papers.

    python -m benchmarks.gpu.students OUT [--rows ROW ...] [--seconds 500] [--effort 1.0] [--toy]

``OUT`` holds ``train-*.tar`` and ``test-00000.tar``, CIFAR-10 as WebDataset (``png`` and ``cls``),
and keeps all results. A call stops after ``--seconds`` with exit code 75, and the next call
continues. Exit code 0 means that everything is done. First a ResNet-34 and a WRN-40-2 are trained
on the real images. Then the pipeline does the rest: ``synthesize`` makes 50,000 images of each
teacher with the objective of ``examples/cifar10.yaml``, 100 iterations and batches of 1,000, and
``distill`` trains students from random weights, with adversarial images and imitation of feature
maps. Real images measure the students' final accuracy and nothing else. ``OUT/results.json`` and
``OUT/results.md`` have the results.

``--effort 0.7`` takes 0.7 of the steps of each student. All calls need the same ``--effort``,
because a student with another number of steps is another student. ``--rows`` selects students. Such
calls can share a GPU if each has a separate ``OUT``.

The script needs the packages of ``benchmarks.gpu.loop``, and webdataset (with braceexpand and
pyyaml), pyarrow and safetensors.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from benchmarks.gpu.pieces import OutOfTime, Pieces
from benchmarks.gpu.report import students_table
from benchmarks.machine import Warnings, choose_device, describe
from benchmarks.teachers.cifar10 import Recipe, accuracy, read_images, train
from pipeline.config.distillation import DistillationConfig
from pipeline.config.schema import Config
from pipeline.config.student import StudentConfig
from pipeline.dataset.dataset import Dataset
from pipeline.distillation.job import DistillJob, is_trained
from pipeline.distillation.train_student import distill
from pipeline.params import load_params, parse_params
from pipeline.stages.synthesize import synthesize
from pipeline.storage import write_bytes, write_json
from pipeline.synthesis.shard_states import shard_states
from pipeline.teachers.networks import build_network, load_weights
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import load_teacher

MORE = 75  # Exit code of a call that must be repeated.
COMPILING = 75.0  # Approximate seconds.
NETWORKS = "benchmarks.teachers.cifar10_networks"
PARAMS = Path("examples/cifar10.yaml")
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
TEACHERS = {"resnet34": 0.95, "wrn40_2": None}  # Teachers, and the required accuracy.


@dataclass(frozen=True, slots=True)
class Row:
    """A student: its teacher, the number of images, and the required accuracy."""

    name: str
    teacher: str
    student: str
    images: int
    steps: int
    bar: float
    aim: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    rows: tuple[Row, ...]
    recipe: Recipe = field(default_factory=Recipe)
    arguments: dict[str, Any] = field(default_factory=dict)  # Arguments of all networks.
    shard: int = 5000  # Five batches. A shard is written while the next one is made.
    synthesis: dict[str, Any] = field(
        default_factory=lambda: {"batch_size": 1000, "iterations": 100}
    )
    training: dict[str, Any] = field(
        default_factory=lambda: {"batch_size": 256, "checkpoint_every": 1000}
    )
    compiling: float = COMPILING


FULL = Size(
    rows=(
        Row("resnet18", "resnet34", "resnet18", 50_000, 20_000, 0.933, 0.95),
        Row("resnet18-10000", "resnet34", "resnet18", 10_000, 10_000, 0.85, 0.85),
        Row("wrn16_1", "wrn40_2", "wrn16_1", 50_000, 20_000, 0.874, 0.90),
        Row("wrn16_1-10000", "wrn40_2", "wrn16_1", 10_000, 10_000, 0.85, 0.85),
    )
)
_EAGER = {"precision": "float32", "compile": False}
TOY = Size(
    rows=tuple(replace(row, images=row.images // 2500, steps=6) for row in FULL.rows),
    recipe=Recipe(epochs=2, batch=16, compiled=False, bfloat16=False),
    arguments={"width": 4},
    shard=4,
    synthesis={"batch_size": 4, "iterations": 2, **_EAGER},
    training={"batch_size": 4, "checkpoint_every": 2, **_EAGER},
    compiling=0.0,
)


@dataclass(frozen=True, slots=True)
class Run:
    out: Path
    size: Size
    device: torch.device
    pieces: Pieces

    def weights(self, teacher: str) -> Path:
        return self.out / f"{teacher}.safetensors"

    def student(self, row: Row) -> Path:
        return self.out / "students" / f"{row.name}.safetensors"

    def network(self, name: str) -> torch.nn.Module:
        return build_network(f"{NETWORKS}:{name}", self.size.arguments, "teacher")


def configured(run: Run, teacher: str) -> Config:
    """Return the parameters of a teacher's images, with the objective of the example."""
    most = max(row.images for row in run.size.rows if row.teacher == teacher)
    shape = {"channels": 3, "height": 32, "width": 32}
    source = {
        "source": f"{NETWORKS}:{teacher}",
        "arguments": run.size.arguments,
    }
    objective = load_params(PARAMS).synthesis.objective.model_dump(mode="json", exclude_unset=True)
    synthesis = {"shard_size": run.size.shard, "objective": objective, **run.size.synthesis}
    return parse_params(
        {
            "teacher": {
                **source,
                "weights": str(run.weights(teacher)),
                "classes": 10,
                "input": {**shape, "mean": MEAN, "std": STD},
            },
            "student": source,
            "synthesis": {"images": most, **synthesis},
            "execution": {"device": run.device.type},
            "paths": {
                "dataset": str(run.out / f"images-{teacher}"),
                "students": str(run.out / "students"),
                "reports": str(run.out / "reports"),
            },
        }
    )


def make_teacher(run: Run, name: str) -> None:
    """Train a teacher unless it exists."""
    path = run.weights(name)
    if path.is_file():
        return
    with run.pieces.stage(name):
        real = read_images(sorted(run.out.glob("train-*.tar")), run.device)
        torch.manual_seed(0)
        network = run.network(name)
        prepare = Preprocessing.of(configured(run, name).teacher.input).to(run.device)
        checkpoint = path.with_suffix(".checkpoint")
        train(network, prepare, real, run.size.recipe, checkpoint, run.pieces)
        state = network.state_dict()
        write_bytes(path, save({key: t.cpu().contiguous() for key, t in state.items()}))
        checkpoint.unlink(missing_ok=True)


def make_student(run: Run, row: Row) -> None:
    """Make missing images, and the student."""
    config = configured(run, row.teacher)
    teacher = load_teacher(config.teacher, torch.device("cpu"))
    dataset, numbers = Dataset.planned(config), range(row.images // run.size.shard)
    states = shard_states(config, teacher.digest)
    if any(states[number] != "complete" for number in numbers):
        with run.pieces.stage(f"images of {row.teacher}"):
            only = None if len(numbers) == len(states) else numbers
            synthesize(config, teacher, run.pieces.runner(run.device.type), only)
    source = f"{NETWORKS}:{row.student}"
    example = load_params(PARAMS).distillation
    job = DistillJob(
        name=row.name,
        teacher=config.teacher,
        teacher_digest=teacher.digest,
        student=StudentConfig(source=source, arguments=run.size.arguments),
        training=DistillationConfig(
            steps=row.steps,
            adversarial=example.adversarial,
            imitation=example.imitation,
            **run.size.training,
        ),
        shards=dataset.tars(numbers),
        dataset=dataset.digest(numbers),
        seed=0,
        output=run.student(row),
    )
    if not is_trained(job):
        with run.pieces.stage(row.name):
            distill(job, run.device.type, run.pieces.after_checkpoint(job.training))


def results(run: Run) -> list[dict[str, Any]]:
    """Measure the accuracy on real images of each network that exists."""
    real = read_images([run.out / "test-00000.tar"], run.device)
    rows = []
    wanted = [
        *((name, name, name, 0, bar, bar) for name, bar in TEACHERS.items()),
        *((r.name, r.student, r.teacher, r.images, r.bar, r.aim) for r in run.size.rows),
    ]
    for name, network, teacher, images, bar, aim in wanted:
        path = run.out / "students" / f"{name}.safetensors" if images else run.weights(name)
        if not path.is_file():
            continue
        trained = run.network(network)
        load_weights(trained, path, "student")
        prepare = Preprocessing.of(configured(run, teacher).teacher.input).to(run.device)
        reached = round(accuracy(trained.to(run.device), prepare, real), 4)
        met = None if bar is None else reached >= bar
        facts = {"network": name, "teacher": teacher if images else None, "images": images}
        rows.append({**facts, "accuracy": reached, "bar": bar, "aim": aim, "met": met})
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=500.0, help="time budget of this call")
    parser.add_argument("--effort", type=float, default=1.0, help="share of each student's steps")
    names = [row.name for row in FULL.rows]
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)
    device, warnings = choose_device(options.toy), Warnings()
    if not list(options.out.glob("train-*.tar")) or not (options.out / "test-00000.tar").is_file():
        parser.error(f"{options.out} must hold train-*.tar and test-00000.tar")
    size = TOY if options.toy else FULL
    rows = (replace(row, steps=max(1, round(options.effort * row.steps))) for row in size.rows)
    size = replace(size, rows=tuple(rows))
    pieces = Pieces(options.out / "seconds.json", options.seconds, size.compiling)
    run = Run(options.out, size, device, pieces)
    finished = False
    try:
        for row in [row for row in size.rows if row.name in options.rows]:
            make_teacher(run, row.teacher)
            make_student(run, row)
        finished = True
    except OutOfTime:
        pass
    report = {
        "toy": options.toy,
        "finished": finished,
        "effort": options.effort,
        "machine": describe(device),
        "results": results(run),
        "seconds": pieces.seconds(),
        "warnings": warnings.seen,
    }
    write_json(options.out / "results.json", report)
    write_bytes(options.out / "results.md", students_table(report).encode())
    sys.stdout.write(students_table(report))
    return 0 if finished else MORE


if __name__ == "__main__":
    sys.exit(main())
