"""The section ``synthesis`` and its ``objective``."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.config.fields import (
    AUTO,
    Between,
    Count,
    Decay,
    Few,
    Fraction,
    Positive,
    Rate,
    Section,
    Seed,
    Share,
    Spread,
    Weight,
)
from pipeline.device.precision import PrecisionChoice
from pipeline.objective.presets import PRESETS, FeatureForm, Objective, Schedule, Start

_KEYS_OF_ADAPTIVE = ("compete", "masked")  # fields of Objective that only section `adaptive` sets


class ObjectiveConfig(Section):
    """A preset, and values that replace some of the preset's. null keeps the preset's value.

    The preset ``auto`` is replaced by one that fits the teacher when the parameters are read. The
    other fields are those of :class:`Objective`, which describes them.
    """

    preset: str = AUTO
    classification: Weight | None = None
    classification_spread: Spread | None = None
    tv: Weight | None = None
    tv_spread: Spread | None = None
    l2: Weight | None = None
    feature: Weight | None = None
    feature_form: FeatureForm | None = None
    start: Start | None = None
    learning_rate: Rate | None = None
    betas: tuple[Decay, Decay] | None = None
    warmup: Count | None = None
    schedule: Schedule | None = None
    jitter: Count | None = None
    flip: bool | None = None
    clamp: bool | None = None
    colour: Weight | None = None
    zoom: Share | None = None
    zoom_schedule: Schedule | None = None
    coarse: Fraction | None = None
    ambiguity: Fraction | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.preset not in (AUTO, *PRESETS):
            raise ValueError(f"preset {self.preset!r} is not one of {', '.join((AUTO, *PRESETS))}")
        return self

    def resolve(self) -> Objective:
        """The preset with the given values in place."""
        given = self.model_dump(exclude={"preset"}, exclude_none=True)
        return replace(PRESETS["normalised" if self.preset == AUTO else self.preset], **given)


def _check_fields() -> None:
    """Raise if a field of Objective has no key in the parameters, or a key has no field."""
    keys = {*ObjectiveConfig.model_fields, *_KEYS_OF_ADAPTIVE} - {"preset"}
    wrong = sorted(keys ^ {field.name for field in fields(Objective)})
    if wrong:
        raise TypeError(
            f"ObjectiveConfig and Objective differ in {', '.join(wrong)}: declare each field in "
            "pipeline/objective/presets.py and in pipeline/config/synthesis.py"
        )


_check_fields()


class SynthesisConfig(Section):
    """The dataset to make, before any adaptive round."""

    images: Positive | None = None
    images_per_class: Positive | dict[int, Count] | None = None
    shard_size: Positive = 1000
    batch_size: Annotated[int, Field(ge=2)] = 256
    iterations: Count = 200
    min_confidence: Fraction = 0.0
    confirmed: bool = False
    max_similarity: Between | None = None
    keep: Share = 1.0
    attempts: Few = 3
    seed: Seed = 0
    threads: Few = 1
    precision: PrecisionChoice = "auto"
    compile: bool = True
    checkpointing: bool = False
    soft_labels: bool = False
    objective: ObjectiveConfig = ObjectiveConfig()

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.images is None) == (self.images_per_class is None):
            raise ValueError("set one of images and images_per_class, and leave the other null")
        return self

    @model_validator(mode="after")
    def _keeps_some(self) -> Self:
        if self.batch_size * self.keep < 1:
            raise ValueError(
                f"keep {self.keep} leaves no image of a batch_size of {self.batch_size}"
            )
        return self
