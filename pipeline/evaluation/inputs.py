"""What the evaluation reads: real images, foreign images and the verifier."""

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
    """The configured tar of real images. Its first image has been checked.

    Raises:
        UserError: no tar is configured, the file is missing, or it holds other things.
    """
    if config.evaluation.data is None:
        raise UserError("evaluation.data is not set: name a tar of real images (png and cls)")
    return _checked(config, "evaluation.data", Path(config.evaluation.data))


def foreign_images(config: Config) -> Path | None:
    """The configured tar of foreign images, made with other parameters; None without one.

    Its first image has been checked.

    Raises:
        UserError: the file is missing, or it holds other things.
    """
    if config.evaluation.foreign is None:
        return None
    return _checked(config, "evaluation.foreign", Path(config.evaluation.foreign))


def load_verifier(verifier: TeacherConfig, device: torch.device) -> Teacher:
    """Load the verifier: a network that is independent of the teacher.

    Raises:
        UserError: its source, weights, input or class count do not fit together.
    """
    return load_teacher(verifier, device, "evaluation.verifier")


def check_evaluation(config: Config) -> None:
    """Check, before a long run, that everything under ``evaluation`` can be used.

    Raises:
        UserError: names what cannot be used.
    """
    if config.evaluation.data is not None:
        real_data(config)
    foreign_images(config)
    if config.evaluation.verifier is not None:
        load_verifier(config.evaluation.verifier, torch.device("cpu"))


def _checked(config: Config, key: str, path: Path) -> Path:
    """``path``, after a look at its first image."""
    size = config.teacher.input
    next(real_batches(path, key, (size.channels, size.height, size.width), 1))
    return path


def real_batches(data: Path, key: str, shape: tuple[int, int, int], size: int) -> Iterator[Batch]:
    """The images and labels of a tar, in its order.

    Args:
        data: the tar.
        key: the parameter that names it, for errors.
        shape: channels, height and width of the teacher's input.
        size: images in a batch. The last one may be smaller.

    Raises:
        UserError: the tar is damaged or empty, or its images have another size.
    """
    if not data.is_file():
        if data.exists():
            raise UserError(f"{key} {data} is a folder, a pipe or a device: name a tar")
        raise UserError(f"{key}: there is no file {data}")
    empty = True
    try:
        for pixels, labels in ordered_batches([data], size):
            empty = False
            if tuple(pixels.shape[1:]) != shape:
                raise UserError(
                    f"{key} {data} holds images of {tuple(pixels.shape[1:])}, but teacher.input "
                    f"is {shape}: resize the images"
                )
            yield pixels, labels
    except BadShardError as error:
        raise UserError(f"{key}: {error}") from error
    if empty:
        raise UserError(f"{key} {data} holds no image")
