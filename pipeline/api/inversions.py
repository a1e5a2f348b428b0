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
        labels: the class that each image was made for, int64 ``[N]``; None without labels.
        logits: the teacher's answer to each image, float32 ``[N, K]``; None without labels.
    """

    images: Tensor
    labels: Tensor | None
    logits: Tensor | None


def invert(
    model: nn.Module,
    classes: int | None,
    input: Input,
    images: int = 64,
    *,
    labels: str = "class",
    device: str = "auto",
    **settings: Any,
) -> Inversion:
    """Invert a model that is in memory, and return the images. Writes no file.

    Args:
        model: a trained classifier that returns logits ``[B, classes]``. It is copied, not changed.
            With ``labels="none"`` it is any network with BatchNorm.
        classes: the number of its classes; None counts the model's outputs.
        input: a dict like ``teacher.input``, or ``(channels, height, width, mean, std)``, where the
            model takes ``(pixel / 255 - mean) / std``.
        images: how many images to make, as many of each class as of any other.
        labels: ``class``, or ``none`` as ``teacher.labels``.
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
        teacher = {"classes": classes, "input": input, "labels": labels}
        config = model_params(model, teacher, {"images": images, **settings}, device)
        job = InversionJob(config, load_checked_teacher(config).digest, len(plan_of(config).labels))
        with open_runner(config, config.synthesis.threads) as run:
            ((pixels, made_for, logits),) = run(invert_job, [job], "invert")
    if not config.teacher.labelled:
        return Inversion(pixels, None, None)
    return Inversion(pixels, made_for, logits)
