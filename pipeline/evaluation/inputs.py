"""Real and foreign images and the verifier that the evaluation reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.config.schema import Config
from pipeline.config.teacher import TeacherConfig
from pipeline.dataset.stream import Batch, ordered_batches
from pipeline.errors import BadShardError, UserError
from pipeline.teachers.teacher import Teacher, load_teacher


def real_data(config: Config) -> Path:
    """The tar of real images, whose first one was looked at.

    Raises:
        UserError: none is configured, it is not there, or it holds something else.
    """
    if config.evaluation.data is None:
        raise UserError("evaluation.data is not set: name a tar of real images (png and cls)")
    return _looked_at(config, "evaluation.data", Path(config.evaluation.data))


def foreign_images(config: Config) -> Path | None:
    """The shard of another recipe, if one is configured, whose first image was looked at.

    Raises:
        UserError: it is not there, or it holds something else.
    """
    if config.evaluation.foreign is None:
        return None
    return _looked_at(config, "evaluation.foreign", Path(config.evaluation.foreign))


def load_verifier(verifier: TeacherConfig, device: torch.device) -> Teacher:
    """The independent network."""
    return load_teacher(verifier, device, "evaluation.verifier")


def check_evaluation(config: Config) -> None:
    """All that is configured to measure with can be used: for before a long run.

    Raises:
        UserError: what cannot.
    """
    if config.evaluation.data is not None:
        real_data(config)
    foreign_images(config)
    if config.evaluation.verifier is not None:
        load_verifier(config.evaluation.verifier, torch.device("cpu"))


def _looked_at(config: Config, key: str, path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{key}: there is no file {path}")
    size = config.teacher.input
    next(real_batches(path, key, (size.channels, size.height, size.width), 1))
    return path


def real_batches(data: Path, key: str, shape: tuple[int, int, int], size: int) -> Iterator[Batch]:
    """Images and labels of the tar that ``key`` names, if they are what the teacher takes."""
    empty = True
    try:
        for pixels, labels in ordered_batches([data], size):
            empty = False
            if tuple(pixels.shape[1:]) != shape:
                raise UserError(
                    f"{key} holds images of {tuple(pixels.shape[1:])}, teacher.input says {shape}"
                )
            yield pixels, labels
    except BadShardError as error:
        raise UserError(f"{key}: {error}") from error
    if empty:
        raise UserError(f"{key} {data} holds no image")
