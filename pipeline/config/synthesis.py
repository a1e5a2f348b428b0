"""The section ``synthesis``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.fields import Between, Count, Few, Fraction, Positive, Section, Seed, Share
from pipeline.config.objective import ObjectiveConfig
from pipeline.device.precision import PrecisionChoice


class SynthesisConfig(Section):
    """The images to make, before any adaptive round. Set ``images`` or ``images_per_class``."""

    images: Positive | None = None
    """Images in total, divided among the classes as evenly as possible."""

    images_per_class: Positive | dict[int, Count] | None = None
    """Images of each class: a number for all classes, or a table ``{class: number}``."""

    shard_size: Positive = 1000
    """Images in a shard (a tar). The last shard of a round may be smaller."""

    batch_size: Annotated[int, Field(ge=2)] = 256
    """Most images that are optimised together, at least 2. R_feature compares the statistics of
    such a batch with the teacher's."""

    iterations: Count | Literal["auto"] = "auto"
    """Gradient steps for each image, at least 0. ``auto``: 400 for images whose shorter side has 96
    pixels or more, else 200."""

    min_confidence: Fraction = 0.0
    """Lowest probability that the teacher must give to the label of an image, 0 to 1. An image
    below it is made again. 0: no limit."""

    confirmed: bool = False
    """Make an image again if the teacher predicts another class than its label."""

    max_similarity: Between | None = None
    """Highest cosine similarity of two images in a shard, between 0 and 1, such as 0.95. The later
    image of a more similar pair is made again. Null: no limit."""

    keep: Share = 1.0
    """Share of the images made that is kept, above 0 and at most 1. 0.5 makes twice the images and
    keeps the most useful half of each class."""

    attempts: Few = 3
    """Most attempts at an image, 1 to 1024. After the last one the run stops if the image diverged
    or is below ``min_confidence``, and keeps the image if it is only unconfirmed or too similar."""

    seed: Seed = 0
    """Seed of all random numbers of the synthesis, 0 to 2**63 - 1."""

    threads: Few = 1
    """CPU threads of a worker, 1 to 1024. Another number changes the last bits of pixels."""

    precision: PrecisionChoice = "auto"
    """``float32``, ``bfloat16`` or ``auto``: bfloat16 where the hardware supports it and is
    therefore faster, float32 elsewhere."""

    compile: bool | Literal["auto"] = True
    """Use torch.compile. It pays for larger teachers and needs a C++ compiler. ``auto``: compile
    from 100,000 image-iterations on (all images of the plan times ``iterations``; 2,041 for images
    of 224 x 224 pixels), because below that compiling takes longer than it saves, by estimate."""

    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, but one more forward pass and no
    compiling."""

    soft_labels: bool = False
    """Store the teacher's logits of each image as float16 in ``KEY.logits.npy``."""

    views: Annotated[int, Field(ge=0, le=64)] = 0
    """Views of each image that ``KEY.views.npy`` describes, with the teacher's logits of each, 0 to
    64: the image mixed with another one, shifted and mirrored. A student then needs no teacher."""

    captions: str | None = None
    """Store a caption of each image in ``KEY.txt``, for open_clip: a template with one ``{}`` for
    the name of the class, such as ``a photo of a {}``. Needs ``teacher.class_names``. Null: none.
    """

    objective: ObjectiveConfig = ObjectiveConfig()
    """What the gradient steps minimise."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.images is None) == (self.images_per_class is None):
            raise ValueError("set one of images and images_per_class, and leave the other null")
        return self

    @field_validator("captions")
    @classmethod
    def _one_place(cls, template: str | None) -> str | None:
        """A template has one place for a name, and no other braces, which nothing would fill."""
        if template is not None and (
            template.count("{}") != 1 or set("{}") & set(template.replace("{}", ""))
        ):
            raise ValueError(
                f"the template {template!r} must have exactly one {{}} for the name of the class, "
                "and no other braces: write it like 'a photo of a {}'"
            )
        return template

    @model_validator(mode="after")
    def _keeps_some(self) -> Self:
        if self.batch_size * self.keep < 1:
            raise ValueError(
                f"keep {self.keep} leaves no image of a batch_size of {self.batch_size}"
            )
        return self
