"""Check everything that can be wrong before the first gradient step."""

from __future__ import annotations

import torch

from pipeline.config.distillation import DistillationConfig
from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.device.threads import one_thread
from pipeline.distillation.feature_maps import FeatureMaps, Imitation
from pipeline.errors import UserError
from pipeline.storage import check_writable, location
from pipeline.teachers import networks, teacher
from pipeline.teachers.batchnorm_check import check_soundness
from pipeline.teachers.libraries import split
from pipeline.teachers.teacher import Teacher, load_teacher


@one_thread()
def load_checked_teacher(config: Config, *outputs: str) -> Teacher:
    """Everything that can be wrong before the first gradient. Returns the teacher, on the CPU.

    ``outputs`` names the fields of ``paths`` that must take files.

    Raises:
        UserError: what is wrong and what to do.
    """
    loaded = load_teacher(config.teacher, torch.device("cpu"))
    if config.synthesis.objective.resolve().feature > 0:
        published = config.teacher.weights is None and split(config.teacher.source)[0]
        check_soundness(loaded, random=published in ("torchvision", "timm", "hf"))
    if config.adaptive.rounds:
        check_student(config, loaded, "adaptive.training", config.adaptive.training)
        batch = config.adaptive.training.batch_size
        first = sum(end - start for round_, start, end in plan_of(config).bounds if round_ == 0)
        if batch > first:
            raise UserError(
                f"adaptive.training.batch_size is {batch}, but the first round has {first} images"
            )
    for name in outputs:
        check_writable(location(getattr(config.paths, name)), f"paths.{name}")
    return loaded


@one_thread()
def check_student(
    config: Config, loaded: Teacher, section: str, training: DistillationConfig
) -> None:
    """The student exists, answers the teacher's input with as many logits, and has what
    ``section``, its training, asks for."""
    network = networks.build_network(config.student.source, config.student.arguments, "student")
    teacher.check_classes(network.eval(), loaded.shape, loaded.classes, "student")
    teacher.check_classes(network.train(), loaded.shape, loaded.classes, "student in training mode")
    if training.imitation:
        images = torch.zeros(2, *loaded.shape)
        try:
            Imitation(FeatureMaps(loaded.network, images), FeatureMaps(network, images))
        except UserError as error:
            raise UserError(f"{section}.imitation must be 0: {error}") from error
