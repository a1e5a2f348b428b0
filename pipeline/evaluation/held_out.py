"""Compare the students with the teacher on synthetic images that no student has learnt from.

Without real images this is the only figure of a student's quality. The images come from the
dataset's recipe with another seed, and are not stored. Students learn from images of this kind, so
they usually agree more with the teacher here than on real images.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.schema import Config
from pipeline.dataset.plan import derive_seed, plan_of
from pipeline.device.threads import one_thread
from pipeline.evaluation.accuracy import BATCH, load_student, share
from pipeline.execution.runner import Runner
from pipeline.execution.torchrun import is_first
from pipeline.stages.final_students import STUDENT, weights_path
from pipeline.stages.invert import InversionJob, invert_job
from pipeline.storage import digest_file, digest_json
from pipeline.teachers.predict import predict
from pipeline.teachers.teacher import Teacher

FEWEST, SHARE = 16, 20  # at most a twentieth of the dataset, but at least 16 images
log = logging.getLogger(__name__)


@one_thread()
def held_out_agreement(config: Config, teacher: Teacher, run: Runner) -> dict[str, Any] | None:
    """Measure the share of new synthetic images on which student and teacher agree.

    Nothing is made again while students, teacher and recipe stay the same: the figure of the last
    report is returned.

    Args:
        config: The parameters. All students are trained.
        teacher: The teacher.
        run: Runs the inversion, as a shard of the dataset.

    Returns:
        ``agreement``, the mean over the seeds, ``agreements`` of each seed, ``images`` and ``of``,
        a digest of everything that the figure follows from. None where real images are configured,
        ``evaluation.held_out`` is 0, this is not the first process of torchrun, or the inversion
        failed, about which a warning tells.
    """
    if config.evaluation.data is not None or not config.evaluation.held_out or not is_first():
        return None
    recipe = _recipe(config)
    images = len(plan_of(recipe).labels)
    paths = {seed: weights_path(config, STUDENT, seed) for seed in config.distillation.seeds}
    facts = [recipe.synthesis.model_dump(mode="json"), images, teacher.digest]
    of = digest_json([*facts, [digest_file(path) for path in paths.values()]])
    known = _last_report(config)
    if known.get("of") == of:
        return known
    try:
        job = InversionJob(recipe, teacher.digest, images)
        ((pixels, _, logits),) = run(invert_job, [job], "held-out images")
    except Exception as error:
        log.warning("students were not compared on held-out images, which failed: %s", error)
        return None
    agreements = {}
    for seed in paths:
        student = load_student(config, teacher, STUDENT, seed)
        answers = predict(student, teacher.preprocessing, pixels, BATCH)
        agreements[str(seed)] = share(answers.argmax(1), logits.argmax(1))
    mean = round(sum(agreements.values()) / len(agreements), 6)
    return {"agreement": mean, "agreements": agreements, "images": images, "of": of}


def describe_held_out(found: dict[str, Any]) -> str:
    """Say in one sentence what :func:`held_out_agreement` found, and what it is worth."""
    agreement, images = found["agreement"], found["images"]
    margin = 2 * math.sqrt(max(agreement * (1 - agreement), 1 / images) / images)
    return (
        f"{agreement:.1%} agreement with the teacher on {images} synthetic images that no student "
        f"has learnt from, give or take {margin:.0%}; on real images it is usually lower"
    )


def _recipe(config: Config) -> Config:
    """The parameters of the new images: those of round 0, with another seed and fewer images."""
    labels = plan_of(config).labels
    count = min(config.evaluation.held_out, max(FEWEST, len(labels) // SHARE), len(labels))
    chosen = np.random.default_rng(config.synthesis.seed).permutation(labels)[:count]
    table = Counter(chosen.tolist())
    update = {
        "images": None,
        "images_per_class": {label: table[label] for label in sorted(table)},
        "seed": derive_seed(config.synthesis.seed, -1),  # rounds have the numbers from 0 on
        "keep": 1.0,
        "min_confidence": 0.0,
        "confirmed": False,
        "max_similarity": None,
    }
    return config.model_copy(
        update={
            "synthesis": config.synthesis.model_copy(update=update),
            "adaptive": config.adaptive.model_copy(update={"rounds": 0}),
        }
    )


def _last_report(config: Config) -> dict[str, Any]:
    """What the last report says about held-out images; nothing where there is no such report."""
    try:
        report = json.loads((Path(config.paths.reports) / "distillation.json").read_bytes())
        known = report["held_out"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return known if isinstance(known, dict) else {}
