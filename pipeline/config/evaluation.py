"""The section ``evaluation``."""

from __future__ import annotations

from pipeline.config.fields import Name, Section
from pipeline.config.teacher import TeacherConfig


class EvaluationConfig(Section):
    """What only the stages ``measure`` and ``evaluate`` read. It never influences an image or a
    student."""

    data: Name | None = None
    """A tar of real labelled images (``png`` and ``cls``), to measure the accuracy of teacher and
    students. Null: no accuracy is measured."""

    foreign: Name | None = None
    """A shard of images of another recipe, to compare students without real images. Null: none."""

    verifier: TeacherConfig | None = None
    """An independent network of the same classes and input size, with the fields of ``teacher``. It
    counts how many labels it confirms. Null: none."""
