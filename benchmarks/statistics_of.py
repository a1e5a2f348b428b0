"""Which images a student's BatchNorm statistics should be of: clean ones, or mixed as in training.

    python -m benchmarks.statistics_of OUT ROW [--images 2048] [--steps 2000] [--seed 0]

Takes the student of a row of ``benchmarks.students``, which must be there (``--threads`` as it was
made): as it is, its statistics those of training, and with statistics taken anew from batches of
its own dataset, once as they are and once augmented as in training (cropped, flipped, mixed; not
moved). A line each: what it says of real images, and of foreign ones where ``OUT`` has them.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.restatement import restate
from benchmarks.students import FOREIGN, configured, on_foreign
from pipeline.augmentation import augment
from pipeline.cli import report_errors
from pipeline.config import Config
from pipeline.diversity import look
from pipeline.evaluation import load_student, real_data, share
from pipeline.ranks import WHOLE
from pipeline.streaming import ImageStream
from pipeline.students import STUDENT
from pipeline.teacher import Teacher, load_teacher

BATCHES = 60


def seen(config: Config, teacher: Teacher, mixed: bool) -> Iterator[Tensor]:
    """Batches of the dataset in the teacher's space."""
    shards = sorted(Path(config.paths.dataset).glob("train/*.tar"))
    training = config.distillation
    stream = ImageStream(shards, training.batch_size, training.shuffle, seed=0)
    generator = torch.Generator().manual_seed(0)
    for _, (pixels, _) in islice(stream.endless(0, 0), BATCHES):
        images = teacher.preprocessing.normalise(pixels)
        yield augment(images, training, generator, WHOLE) if mixed else images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("row")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.set_defaults(workers=1, device="cpu")
    with report_errors() as outcome:
        options = parser.parse_args()
        config = configured(options.out, options.row, options)
        teacher = load_teacher(config.teacher, torch.device("cpu"))
        student = load_student(config, teacher, STUDENT, options.seed)
        foreign = options.out / FOREIGN
        for name in ("own", "clean", "mixed"):
            network = copy.deepcopy(student)
            if name != "own":
                restate(network, seen(config, teacher, name == "mixed"))
            real = look(replace(teacher, network=network), [real_data(config)])
            line = f"{name}: {share(real.logits.argmax(1), real.labels):.2%}"
            if foreign.is_file():
                asked = on_foreign(network, teacher, foreign, config.distillation.temperature)
                line += f" {asked}"
            sys.stdout.write(line + "\n")
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
