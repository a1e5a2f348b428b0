"""Load the student that the images of an adaptive round competed with."""

from __future__ import annotations

from torch import nn

from pipeline.config.schema import Config
from pipeline.dataset.layout import Layout
from pipeline.distillation.job import student_problem
from pipeline.errors import UserError
from pipeline.storage import Location
from pipeline.teachers import networks


def load_round_student(config: Config, root: Location, round_: int) -> nn.Module | None:
    """The student that a round competes with, or None where its files are damaged."""
    path = Layout(root).student(round_)
    if student_problem(path) is not None:
        return None
    try:
        student = networks.build_network(config.student.source, config.student.arguments, "student")
        networks.load_weights(student, path, "student")
    except UserError:  # the weights are those of another network
        return None
    return student.eval().requires_grad_(False)
