"""The section ``synthesis.objective``: a preset, and values that replace the preset's."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Self

from pydantic import model_validator

from pipeline.config.fields import (
    AUTO,
    Count,
    Decay,
    Fraction,
    Rate,
    Section,
    Share,
    Spread,
    Weight,
)
from pipeline.objective.presets import PRESETS, FeatureForm, Objective, Schedule, Start


class ObjectiveConfig(Section):
    """A preset, and values that replace the preset's. Null keeps the preset's value."""

    preset: str = AUTO
    """``normalised`` (``-medium`` from 32 pixels, ``-large`` from 96), ``without-batchnorm``
    (``-large`` from 96), or a preset of the paper: ``deepdream-``, ``deepinversion-`` or
    ``adaptive-`` followed by ``cifar10`` or ``imagenet``. ``auto`` (default) chooses by the
    teacher: with or without BatchNorm, and by the shorter side of its input."""

    classification: Weight | None = None
    """Weight of the cross-entropy between the teacher's logits and the label, at least 0."""

    classification_spread: Spread | None = None
    """Spread ``s`` of that weight, 0 to 10: each image multiplies it by ``e^u``, ``u`` uniform in
    ``[-s, s]``. 0 gives all images the same weight."""

    tv: Weight | None = None
    """Weight of R_TV, the total variation, at least 0. More makes images smoother."""

    tv_spread: Spread | None = None
    """Spread of the weight of R_TV, as ``classification_spread``."""

    l2: Weight | None = None
    """Weight of R_l2, the norm of an image, at least 0."""

    feature: Weight | None = None
    """Weight of R_feature, the distance to the teacher's BatchNorm statistics, at least 0."""

    feature_form: FeatureForm | None = None
    """Form of R_feature: ``normalised`` (in units of the running variance) or ``published`` (as in
    the paper)."""

    start: Start | None = None
    """Starting images: ``low-frequency``, ``varied``, ``grey`` or ``white`` noise."""

    learning_rate: Rate | None = None
    """Learning rate of Adam in units of the teacher's normalised input, above 0."""

    betas: tuple[Decay, Decay] | None = None
    """The two decays of Adam, each from 0 to below 1."""

    warmup: Count | None = None
    """Iterations in which the learning rate rises from near 0, at least 0."""

    schedule: Schedule | None = None
    """Learning rate after the warmup: ``cosine`` (falls to 0) or ``constant``."""

    jitter: Count | None = None
    """Largest random shift of the images at each iteration, in pixels, at least 0."""

    flip: bool | None = None
    """Mirror images left to right at random at each iteration. Set false where a mirrored image has
    another class, as for digits."""

    clamp: bool | None = None
    """Keep pixels in the range that can be stored after each iteration."""

    colour: Weight | None = None
    """Largest random change of contrast (its logarithm) and brightness of each channel at each
    iteration, at least 0. 0: none."""

    zoom: Share | None = None
    """Smallest side of the random crop of an iteration as a share of the image's side, above 0 and
    at most 1. 1: no crop."""

    zoom_schedule: Schedule | None = None
    """``constant``: crops as small as ``zoom`` from the first iteration on. ``cosine``: whole
    images first, crops as small as ``zoom`` only at the end."""

    coarse: Fraction | None = None
    """Share of the iterations, the first ones, in which images have half the size; 0 to 1."""

    ambiguity: Fraction | None = None
    """Largest part of an image's target probability that goes to one other class, 0 to 1."""

    @model_validator(mode="after")
    def _known_preset(self) -> Self:
        if self.preset not in (AUTO, *PRESETS):
            raise ValueError(f"preset {self.preset!r} is not one of {', '.join((AUTO, *PRESETS))}")
        return self

    def over(self, preset: str) -> Objective:
        """The values of ``preset``, replaced by the values that this section gives."""
        given = {f.name: getattr(self, f.name, None) for f in fields(Objective)}
        changes = {name: value for name, value in given.items() if value is not None}
        return replace(PRESETS[preset], **changes)
