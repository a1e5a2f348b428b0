"""The section ``evaluation``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.fields import FilePath, Section
from pipeline.config.teacher import TeacherConfig


class EvaluationConfig(Section):
    """What only the stages ``measure`` and ``evaluate`` read. It never influences an image or a
    student."""

    data: FilePath | None = None
    """A tar of real labelled images (``png`` and ``cls``), to measure the accuracy of teacher and
    students. Null: no accuracy is measured."""

    foreign: FilePath | None = None
    """A shard of images of another recipe, to compare students without real images. Null: none."""

    held_out: Annotated[int, Field(ge=0, le=4096)] = 64
    """Synthetic images, 0 to 4096, that ``distill`` makes only to compare the students with the
    teacher, if ``data`` is null. It makes fewer for a small dataset: a twentieth of it, at least
    16. 0: none."""

    trial_steps: Annotated[int, Field(ge=0, le=100_000)] = 200
    """Steps of a student that ``measure`` trains on up to 2,048 images of the dataset, to judge
    what the images teach. It needs no real image. 0: none. Images of more than 128 x 128 pixels
    have no such student on a CPU."""

    verifier: TeacherConfig | None = None
    """An independent network of the same classes and input size, with the fields of ``teacher``. It
    counts how many labels it confirms. Null: none."""
