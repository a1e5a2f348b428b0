"""The verdict on a dataset, in words: usable, doubtful or unusable, and why.

The limits were chosen on datasets whose worth is known from what students learned
(docs/results/teachers.md). No real image is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.stream import ordered_batches
from pipeline.evaluation.signs import Signs, images_to_see, measure_signs
from pipeline.quantities import six_digits
from pipeline.teachers.teacher import Teacher

Level = Literal["usable", "doubtful", "unusable"]
STEADY = ("crop", "shift", "blur", "noise", "contrast")
"""The changes of an image that leave its class at every size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Two limits of one sign: beyond the first it is doubtful, beyond the second unusable.

    ``low`` signs are bad below the limits, others above them. ``complaint`` is a format with the
    value.
    """

    name: str
    doubtful: float
    unusable: float
    low: bool
    complaint: str

    def level(self, value: float) -> Level:
        """How bad a value is."""
        sign = -1 if self.low else 1
        if sign * value > sign * self.unusable:
            return "unusable"
        return "doubtful" if sign * value > sign * self.doubtful else "usable"


LIMITS = (
    Limit(
        name="contrast", doubtful=0.08, unusable=0.03, low=True,
        complaint="the images are nearly of one colour (contrast {:.3f}; photographs have 0.2)",
    ),
    Limit(
        name="saturated", doubtful=0.5, unusable=0.9, low=False,
        complaint="{:.0%} of the pixels are black or white",
    ),
    Limit(
        name="confirmed", doubtful=0.9, unusable=0.5, low=True,
        complaint="the teacher confirms only {:.0%} of the labels",
    ),
    Limit(
        name="gap", doubtful=0.4, unusable=1.0, low=False,
        complaint="the BatchNorm statistics are far from the teacher's (gap {:.2g}; good images "
        "have 0.2 or less)",
    ),
    Limit(
        name="steady", doubtful=0.55, unusable=0.35, low=True,
        complaint="the teacher sees the class in only {:.0%} of slightly changed images (crop, "
        "shift, blur, noise, contrast)",
    ),
    Limit(
        name="taught", doubtful=0.05, unusable=-1.0, low=True,  # some students learn slowly
        complaint="a student learned little from them in a few steps: on procedural pictures its "
        "agreement with the teacher is {:.0%} of the way from chance to full agreement",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """A level, the reasons for it, and the signs that it was taken from.

    ``reasons`` are complaints, or the good signs of a usable dataset.
    """

    level: Level
    reasons: tuple[str, ...]
    signs: Signs

    def __str__(self) -> str:
        return f"these images look {self.level}: {'; '.join(self.reasons)}"

    def report(self) -> dict[str, Any]:
        """The verdict as a part of a JSON report, with six digits."""
        return {
            "level": self.level,
            "reasons": list(self.reasons),
            **_rounded(asdict(self.signs)),
        }


def judge(signs: Signs) -> Verdict:
    """Judge a dataset by its signs. The worst sign decides.

    Example::

        str(judge(measure_signs(teacher, pixels, labels)))
    """
    values = sign_values(signs)
    found = {limit: limit.level(values[limit.name]) for limit in LIMITS if limit.name in values}
    for level in ("unusable", "doubtful"):
        reasons = [
            limit.complaint.format(values[limit.name])
            for limit, each in found.items()
            if each == level
        ]
        if reasons:
            return Verdict(level, tuple(reasons), signs)
    return Verdict("usable", tuple(_praise(values)), signs)


def judge_images(
    teacher: Teacher, pixels: Tensor, labels: Tensor, taught: float | None = None
) -> Verdict:
    """Judge images, uint8 ``[N, C, H, W]``, that have the labels ``[N]``.

    ``taught`` is what a student learned from them
    (:func:`pipeline.evaluation.trial_student.trial_agreement`), if one was trained.
    """
    return judge(replace(measure_signs(teacher, pixels, labels), taught=taught))


def sign_values(signs: Signs) -> dict[str, float]:
    """The values that are compared with :data:`LIMITS`, by name."""
    values = {"contrast": signs.contrast, "saturated": signs.saturated}
    if signs.confirmed is not None:
        values["confirmed"] = signs.confirmed
        values["steady"] = mean(signs.views[name] for name in STEADY)
    others = {"gap": signs.gap, "taught": signs.taught}
    return values | {name: value for name, value in others.items() if value is not None}


def dataset_verdict(config: Config, teacher: Teacher) -> Verdict:
    """Judge the first images of evenly spaced shards of a complete dataset.

    Args:
        config: The configuration of the dataset.
        teacher: The teacher.
    """
    tars = Dataset.planned(config).paths.tars
    images = images_to_see(teacher)
    most = max(1, -(-images // config.synthesis.shard_size))
    chosen = tars[:: -(-len(tars) // most)]
    size = images // len(chosen)
    parts = [next(ordered_batches([tar], size, teacher.labelled)) for tar in chosen]
    pixels, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return judge_images(teacher, pixels, labels)


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(value) if isinstance(value, dict) else value and six_digits(value)
        for name, value in values.items()
    }


def _praise(values: dict[str, float]) -> Iterator[str]:
    if "steady" in values:
        yield f"the teacher sees the class in {values['steady']:.0%} of slightly changed images"
    if "gap" in values:
        yield f"the BatchNorm statistics are close to the teacher's (gap {values['gap']:.2g})"
    if "taught" in values:
        yield "a student learned from them in a few steps"
