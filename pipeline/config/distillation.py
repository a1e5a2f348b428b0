"""The sections ``distillation`` and ``adaptive``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.fields import (
    Count,
    Decay,
    Few,
    Fraction,
    Positive,
    Rate,
    Section,
    Seed,
    Weight,
)
from pipeline.device.precision import PrecisionChoice


class DistillationConfig(Section):
    """How a student learns from shards."""

    steps: Positive = 3000
    batch_size: Annotated[int, Field(ge=2)] = 128
    temperature: Rate = 50.0
    imitation: Weight = 0.0
    optimizer: Literal["sgd", "muon"] = "muon"
    learning_rate: Rate = 0.2
    momentum: Decay = 0.9
    weight_decay: Weight = 5e-4
    warmup: Count = 100
    shift: Count = 4
    flip: bool = True
    mixup: Fraction = 0.5
    cutmix: Fraction = 0.7
    cutout: Count = 0
    adversarial: Weight = 0.0
    ema: Decay = 0.0
    precision: PrecisionChoice = "auto"
    compile: bool = True
    shuffle: Positive = 2000
    threads: Few = 1
    checkpoint_every: Positive = 500

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.adversarial and self.batch_size < 4:
            raise ValueError("adversarial moves half a batch: batch_size must be 4 or more")
        return self


class StudentsConfig(DistillationConfig):
    """The final students: one for each seed, and optionally one that saw only noise."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    noise_baseline: bool = False

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds are those of different students, and one is there twice")
        return self


class RoundTrainingConfig(DistillationConfig):
    """How the student learns that the next round competes with."""

    steps: Positive = 1000


class AdaptiveConfig(Section):
    """Rounds of Adaptive DeepInversion after the first synthesis."""

    rounds: Annotated[int, Field(ge=0, le=32767)] = 0
    images: Positive = 1000
    compete: Weight | None = None
    masked: bool = False
    warm: Fraction = 0.0
    training: RoundTrainingConfig = RoundTrainingConfig()
