"""The section ``adaptive``: rounds of Adaptive DeepInversion."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.distillation import DistillationConfig
from pipeline.config.fields import Fraction, Positive, Rate, Section, Weight


class RoundTrainingConfig(DistillationConfig):
    """How the student of a round is trained."""

    steps: Positive = 1000
    """Optimiser steps."""


class AdaptiveConfig(Section):
    """Rounds after the first synthesis. Each round trains a student on all images made so far, and
    makes images on which this student and the teacher disagree (R_compete)."""

    rounds: Annotated[int, Field(ge=0, le=32767)] = 0
    """Number of adaptive rounds, 0 to 32767."""

    images: Positive = 1000
    """Images that each round makes."""

    compete: Weight | None = None
    """Weight of R_compete, at least 0. Null: the preset's weight."""

    until: Fraction | None = None
    """Share of the iterations, the first ones, in which R_compete counts, 0 to 1. Null: the
    preset's share, which is 1 for the presets of the paper and 0.5 for the others."""

    masked: bool = False
    """Apply R_compete only to images on which the student still predicts the teacher's class."""

    temperature: Rate = 1.0
    """Divides the logits of both networks in R_compete, above 0. The paper's equation has 1."""

    confident: Fraction = 0.0
    """Lowest probability that the teacher must give to an image's class before R_compete counts for
    this image, 0 to 1. 0: R_compete counts from the first iteration on."""

    warm: Fraction = 0.0
    """Share of an earlier image of the same class in each starting image, 0 to 1; the rest is
    noise. 0: noise alone."""

    training: RoundTrainingConfig = RoundTrainingConfig()
    """How the student of a round is trained."""
