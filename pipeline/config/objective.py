"""The section ``synthesis.objective``: a preset, and values that replace the preset's.

The keys are the fields of :class:`pipeline.objective.presets.Objective`. Add a key there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, create_model, model_validator
from pydantic.fields import FieldInfo

from pipeline.config.fields import AUTO, Section
from pipeline.objective.presets import PRESETS, Objective

# Fields of Objective that only section `adaptive` sets.
_KEYS_OF_ADAPTIVE = ("compete", "compete_until", "masked", "temperature", "confident")


class _Preset(Section):
    preset: str = AUTO
    """``normalised`` (``-medium`` from 32 pixels, ``-large`` from 96), ``without-batchnorm``
    (``-large`` from 96), or a preset of the paper: ``deepdream-``, ``deepinversion-`` or
    ``adaptive-`` followed by ``cifar10`` or ``imagenet``. ``auto`` (default) chooses by the
    teacher: with or without BatchNorm, and by the shorter side of its input."""

    @model_validator(mode="after")
    def _known_preset(self) -> Self:
        if self.preset not in (AUTO, *PRESETS):
            raise ValueError(f"preset {self.preset!r} is not one of {', '.join((AUTO, *PRESETS))}")
        return self

    def over(self, preset: str) -> Objective:
        """The values of ``preset``, replaced by the values that this section gives."""
        given = self.model_dump(exclude={"preset"}, exclude_none=True)
        return replace(PRESETS[preset], **given)


def _keys() -> dict[str, Any]:
    """Each field of Objective as a key, with its type, its docstring, and null as the default."""
    known: dict[str, FieldInfo] = Objective.__pydantic_fields__  # type: ignore[attr-defined]
    return {
        name: (field.rebuild_annotation() | None, Field(None, description=field.description))
        for name, field in known.items()
        if name not in _KEYS_OF_ADAPTIVE
    }


if TYPE_CHECKING:

    class ObjectiveConfig(_Preset):
        """A preset, and values that replace the preset's. Null keeps the preset's value."""

else:
    ObjectiveConfig = create_model(
        "ObjectiveConfig",
        __base__=_Preset,
        __module__=__name__,
        __doc__="A preset, and values that replace the preset's. Null keeps the preset's value.",
        **_keys(),
    )
