"""The sections ``teacher`` and ``student``."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline.config.fields import Name, Rate, Section, Side


class InputConfig(Section):
    """What the teacher sees: ``(pixel / 255 - mean) / std``, one mean and std a channel.

    ``interpolation`` is how real images are brought to this size; nothing is made with it.
    """

    channels: Annotated[int, Field(ge=1, le=256)]
    height: Side
    width: Side
    mean: tuple[float, ...]
    std: tuple[Rate, ...]
    interpolation: Name | None = None

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} must have one value for each of {self.channels} channels")
        if max(map(abs, self.mean)) > 3 or max(self.std) > 10:
            raise ValueError(
                "mean and std are of pixels / 255, and these look like values for pixels of 0 to "
                "255: divide both by 255"
            )
        return self


class TeacherConfig(Section):
    """The model to invert."""

    source: Name
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: Name | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    classes: Annotated[int, Field(ge=1, le=32767)]
    class_names: tuple[str, ...] | None = None
    license: Name | None = None
    input: InputConfig

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(
                f"class_names has {len(self.class_names)} names for {self.classes} classes"
            )
        return self

    @model_validator(mode="after")
    def _digest_of_a_file(self) -> Self:
        if self.sha256 is not None and self.weights is None:
            raise ValueError("sha256 is that of a weights file, and weights is null")
        return self


class StudentConfig(Section):
    """The architecture to train, by name; its weights start from scratch."""

    source: Name
    arguments: dict[str, Any] = Field(default_factory=dict)
