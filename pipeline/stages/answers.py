"""The answers of teacher and round student for the published images of a shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.dataset.plan import Batch, ShardPlan
from pipeline.inversion.engine import Engine, Judgement
from pipeline.objective.presets import Objective
from pipeline.objective.terms import factor_names
from pipeline.stages.round_student import load_round_student
from pipeline.storage import Location
from pipeline.synthesis.spec import round_objective
from pipeline.synthesis.stored_views import answer_views, draw_views
from pipeline.teachers.teacher import Teacher

CHUNK = 256  # images in a forward pass
LEAST, SHARE = 0.01, 0.005


@dataclass(frozen=True, slots=True)
class Answers:
    """What the networks say about the images of a shard.

    Attributes:
        labels: int64 ``[N]``.
        logits: the teacher's, float32 ``[N, K]``.
        student_logits: the round student's, float32 ``[N, K]``, or None.
        values: the unweighted terms, ``[N]`` each. R_feature is that of the published images of a
            batch, or of ``CHUNK`` of them.
        objective: the objective of the images' round.
        view_logits: the teacher's for the stored views, float32 ``[N, views, K]``, or None for a
            dataset without them.
    """

    labels: Tensor
    logits: Tensor
    student_logits: Tensor | None
    values: Mapping[str, Tensor]
    objective: Objective
    view_logits: Tensor | None


def slack(logits: Tensor) -> Tensor:
    """How far a logit of each image may be from the same logit on another device, ``[N]``.

    Devices round differently, most of all a GPU that computes in TF32. A logit may deviate by
    :data:`LEAST`, plus the share :data:`SHARE` of the image's largest logit.
    """
    return LEAST + SHARE * logits.abs().amax(1)


class Judges:
    """The networks of each round. Those of a round are loaded when they are first asked.

    Args:
        config: all parameters.
        teacher: the teacher.
        root: the folder of the dataset, which holds the round students.
    """

    def __init__(self, config: Config, teacher: Teacher, root: Location) -> None:
        self.config, self.teacher, self.root = config, teacher, root
        self._engine: tuple[int, Engine] | None = None

    def ask(self, shard: ShardPlan, pixels: Tensor, batches: Sequence[Batch]) -> Answers:
        """Evaluate networks and terms on the published images of a shard, in float32.

        Args:
            shard: the plan of the shard.
            pixels: uint8 ``[N, C, H, W]``.
            batches: the batches that were optimised together, in the order of their images.
        """
        sizes = [size for batch in batches for size in _divided(batch.size)]
        labels = torch.from_numpy(shard.labels.astype(np.int64))
        found: list[Judgement] = []
        views: Tensor | None = None
        with self._of_round(shard.round) as engine:
            for part, of_part in zip(pixels.split(sizes), labels.split(sizes), strict=True):
                images = engine.space.pixels.normalise(part.to(engine.teacher.device))
                factors = torch.ones(len(part), len(factor_names()), device=images.device)
                found.append(engine.judge(images, of_part.to(images.device), factors))
            if self.config.synthesis.views:
                views = answer_views(engine, pixels, draw_views(self.config, shard))
        terms = [judgement.terms.expanded().values for judgement in found]
        students = [j.student_logits for j in found if j.student_logits is not None]
        return Answers(
            labels=labels,
            logits=torch.cat([judgement.logits for judgement in found]).cpu(),
            student_logits=torch.cat(students).cpu() if students else None,
            values={name: torch.cat([each[name] for each in terms]).cpu() for name in terms[0]},
            objective=engine.objective,
            view_logits=views,
        )

    def _of_round(self, round_: int) -> Engine:
        if self._engine is None or self._engine[0] != round_:
            objective = round_objective(self.config, round_)
            student = load_round_student(self.config, self.root, round_) if round_ else None
            if student is not None:
                student.to(self.teacher.device)
            self._engine = round_, Engine(self.teacher, objective, student=student)
        return self._engine[1]


def _divided(size: int) -> Iterator[int]:
    """The sizes of the parts of a batch, each at most ``CHUNK``."""
    for start in range(0, size, CHUNK):
        yield min(CHUNK, size - start)
