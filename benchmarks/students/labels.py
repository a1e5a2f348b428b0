"""Measure what a student learns from a teacher's answers on given images of any origin.

    python -m benchmarks.students.labels OUT PARAMS TAR [TAR ...] [--set KEY=VALUE ...]

The parameter file PARAMS names teacher, student and distillation. The images are shards of this
project, of any teacher. The script prints the accuracy of both networks on ``evaluation.data``.
Of the teacher's logits there it prints the mean gap between the largest one and the mean of the
others, and the mean standard deviation of the others: how much they say of the wrong classes. With
``evaluation.foreign`` it also measures the student on those images, as ``python -m pipeline
measure`` does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.config.schema import Config
from pipeline.dataset.stream import ordered_batches
from pipeline.device.threads import use_threads
from pipeline.distillation.job import DistillJob, is_trained, tars_digest
from pipeline.distillation.train_student import distill
from pipeline.evaluation.inputs import foreign_images, real_data
from pipeline.evaluation.student_measures import on_foreign
from pipeline.exit_codes import report_errors
from pipeline.params import load_params, parse_overrides
from pipeline.storage import digest_json
from pipeline.teachers.networks import build_network, load_weights
from pipeline.teachers.teacher import Teacher, load_teacher

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_student(config: Config, teacher: Teacher, tars: list[Path], out: Path) -> nn.Module:
    """Train the first seed's student on ``tars``, unless ``out`` has it."""
    digest = tars_digest(tars)
    key = digest_json([digest, teacher.digest, str(config.student), str(config.distillation)])[:12]
    job = DistillJob(
        name=key,
        teacher=config.teacher,
        teacher_digest=teacher.digest,
        student=config.student,
        training=config.distillation,
        shards=tuple(tars),
        dataset=digest,
        seed=config.distillation.seeds[0],
        output=out / f"{key}.safetensors",
    )
    if not is_trained(job):
        out.mkdir(parents=True, exist_ok=True)
        with tqdm(total=job.images, desc=key, unit="img", mininterval=10) as bar:
            distill(job, DEVICE, bar.update)
    student = build_network(config.student.source, config.student.arguments, "student")
    load_weights(student, job.output, "student")
    return student.eval().to(DEVICE)


def answers(network: nn.Module, teacher: Teacher, data: Path) -> tuple[Tensor, Tensor]:
    """Compute logits ``[N, K]`` of real images; return them with the classes ``[N]``."""
    logits, labels = [], []
    with torch.no_grad():
        for pixels, classes in ordered_batches([data], 500):
            logits.append(network(teacher.preprocessing.normalise(pixels.to(DEVICE))).cpu())
            labels.append(classes)
    return torch.cat(logits), torch.cat(labels)


def wrong_classes(logits: Tensor) -> tuple[float, float]:
    """Compute, for logits ``[N, K]``, the gap of the largest to the mean of the others.

    Return it with the standard deviation of the others; both are means over the images.
    """
    largest, others = logits.sort(1, descending=True).values.split([1, logits.shape[1] - 1], 1)
    return (largest[:, 0] - others.mean(1)).mean().item(), others.std(1).mean().item()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("params", type=Path)
    parser.add_argument("tars", type=Path, nargs="+")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    with report_errors() as outcome:
        options = parser.parse_args(arguments)
        config = load_params(options.params, parse_overrides(options.set))
        data, foreign = real_data(config), foreign_images(config)
        use_threads(config.distillation.threads)
        teacher = load_teacher(config.teacher, torch.device(DEVICE))
        says, labels = answers(teacher.network, teacher, data)
        gap, deviation = wrong_classes(says)
        student = make_student(config, teacher, options.tars, options.out)
        learnt = answers(student, teacher, data)[0]
        right = [(logits.argmax(1) == labels).double().mean().item() for logits in (says, learnt)]
        sys.stdout.write(
            f"teacher {right[0]:.2%}, student {right[1]:.2%}; the teacher's largest logit is "
            f"{gap:.2f} above the mean of the others, which deviate by {deviation:.2f}\n"
        )
        if foreign is not None:
            facts = on_foreign(student, teacher, foreign)
            sys.stdout.write(", ".join(f"{key} {value:g}" for key, value in facts.items()) + "\n")
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
