"""The section ``distillation``; ``adaptive.training`` has the same fields of training."""

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
    """Optimiser steps."""

    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images in a step, at least 2. A smaller dataset gives all its images to each step."""

    temperature: Rate = 50.0
    """Temperature of the softmax in the distillation loss (Eq. 1), above 0. At a high temperature
    the student learns to match the teacher's logits themselves."""

    imitation: Weight = 0.0
    """Weight of the loss that matches the teacher's feature maps at each size, at least 0. 0: no
    such loss."""

    optimizer: Literal["sgd", "muon"] = "muon"
    """``muon`` orthogonalises the update of each hidden weight matrix, and updates the other
    weights by Adam. ``sgd`` updates all weights by SGD."""

    learning_rate: Rate = 0.2
    """Highest learning rate, above 0. It falls to 0 along a cosine after the warmup."""

    momentum: Decay = 0.9
    """Momentum of the optimiser, from 0 to below 1."""

    weight_decay: Weight = 5e-4
    """Weight decay, at least 0."""

    warmup: Count = 100
    """Steps in which the learning rate rises from near 0, at least 0."""

    shift: Count = 4
    """Largest random shift of an image, in pixels, at least 0."""

    flip: bool = True
    """Mirror images left to right at random. Set false where a mirrored image has another class."""

    mixup: Fraction = 0.5
    """Probability that mixup is applied to a batch, 0 to 1."""

    cutmix: Fraction = 0.7
    """Probability that CutMix is applied to a batch, 0 to 1."""

    cutout: Count = 0
    """Side of a square that is blanked in each image, in pixels, at least 0. 0: off."""

    procedural: Fraction = 0.5
    """Part of the images of a step that is replaced by new procedural pictures of random textures
    and shapes, 0 to 1. The pictures cost little and never repeat. 0: off."""

    adversarial: Weight = 0.4
    """Largest distance by which every fourth image is changed so that student and teacher differ
    more, in units of a quarter of the range from black to white. 0: off; a step then takes four
    fifths of the time."""

    ema: Decay = 0.0
    """Decay of the moving average of the weights, from 0 to below 1. Above 0 the average is
    published, at 0 the last weights."""

    precision: PrecisionChoice = "auto"
    """``float32``, ``bfloat16`` or ``auto``, as ``synthesis.precision``. Weights and BatchNorm
    statistics stay float32."""

    compile: bool = True
    """Use torch.compile. It pays for larger students and needs a C++ compiler."""

    shuffle: Positive = 2000
    """Images in the shuffle buffer."""

    threads: Few = 1
    """CPU threads of a student's training, 1 to 1024."""

    checkpoint_every: Positive = 500
    """Steps between two checkpoints, from which a stopped training continues."""

    def for_images(self, images: int) -> Self:
        """A copy whose batches a dataset can fill.

        Args:
            images: The number of images in the dataset.
        """
        return self.model_copy(update={"batch_size": min(self.batch_size, images)})

    @property
    def fewest_images(self) -> int:
        """The fewest images of a step: two are adversarial, and two are not."""
        return 4 if self.adversarial else 2

    @model_validator(mode="after")
    def _two_adversarial_images(self) -> Self:
        if self.batch_size < self.fewest_images:
            raise ValueError(
                "adversarial changes every fourth image of a batch, and at least two: set "
                "batch_size to 4 or more, or adversarial to 0"
            )
        return self


NOISE, PROCEDURAL = "noise", "procedural"  # baselines


class StudentsConfig(DistillationConfig):
    """The final students, trained on the finished dataset."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Seeds, at least one and each only once. One student is trained for each."""

    noise_baseline: bool = False
    """Train one more student, on as many images of pure noise, as a baseline."""

    procedural_baseline: bool = False
    """Train one more student, on as many procedural pictures that no network optimised and the
    teacher selected, as a baseline."""

    @property
    def baselines(self) -> tuple[str, ...]:
        """The names of the baselines to train, of :data:`NOISE` and :data:`PROCEDURAL`."""
        asked = {NOISE: self.noise_baseline, PROCEDURAL: self.procedural_baseline}
        return tuple(name for name, wanted in asked.items() if wanted)

    @model_validator(mode="after")
    def _different_seeds(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds names a seed twice: give each student another seed")
        return self
