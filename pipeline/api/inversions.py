"""``invert``, and the images that it returns."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from pipeline.api.in_process import Input, model_params, unchanged_process
from pipeline.dataset.plan import plan_of
from pipeline.execution.runner import open_runner
from pipeline.stages.invert import InversionJob, invert_job
from pipeline.synthesis.check import load_checked_teacher


class Inversion(NamedTuple):
    """Images that :func:`invert` made, on the CPU.

    Attributes:
        images: uint8 ``[N, C, H, W]``.
        labels: the class that each image was made for, int64 ``[N]``.
        logits: the teacher's answer to each image, float32 ``[N, K]``.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor


def invert(
    model: nn.Module,
    classes: int,
    input: Input,
    images: int = 64,
    *,
    device: str = "auto",
    **settings: Any,
) -> Inversion:
    """Invert a model that is in memory, and return the images. Writes no file.

    Args:
        model: a trained classifier that returns logits ``[B, classes]``. It is copied, not changed.
        classes: the number of its classes.
        input: a dict like ``teacher.input``, or ``(channels, height, width, mean, std)``, where the
            model takes ``(pixel / 255 - mean) / std``.
        images: how many images to make, as many of each class as of any other.
        device: ``auto``, ``cpu`` or ``cuda``.
        settings: keys of the section ``synthesis``, as in ``iterations=200`` or ``seed=1``.

    Returns:
        The images, their labels and the teacher's logits. The same arguments give the same images.

    Raises:
        UserError: a value is wrong or does not fit the model.

    Example:
        >>> images, labels, logits = invert(net, 10, (3, 32, 32, 0.5, 0.25), images=64)
    """
    with unchanged_process():
        teacher = {"classes": classes, "input": input}
        config = model_params(model, teacher, {"images": images, **settings}, device)
        job = InversionJob(config, load_checked_teacher(config).digest, len(plan_of(config).labels))
        with open_runner(config, config.synthesis.threads) as run:
            (result,) = run(invert_job, [job], "invert")
    return Inversion(*result)
