"""The fields of the form that Prefect's UI shows for a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic.json_schema import SkipJsonSchema

from pipeline.config.fields import Count, Few, FilePath, Fraction, Positive, Seed
from pipeline.config.schema import Config

Empty = SkipJsonSchema[None]  # so that the form shows one field, and no choice of a type


def _without_default(schema: dict[str, Any]) -> None:
    """The form would show the default, null, as a value."""
    schema.pop("default")


def _same_as(section: str, key: str) -> Any:
    """A field with the description of a key of the parameter file, and the key as its title."""
    owner = Config.model_fields[section].annotation
    assert isinstance(owner, type) and issubclass(owner, BaseModel)
    field = owner.model_fields[key]
    text = " ".join((field.description or "").split()).replace("``", "`")
    default = "" if field.default is None else f", or {json.dumps(field.default)} if it has none"
    text = f"{text} Empty: the value of the parameter file{default}."
    return Field(
        default=None,
        title=f"{section}.{key}",
        description=text,
        json_schema_extra=_without_default,
    )


class Settings(BaseModel):
    """Values that replace those of the parameter file. Left empty: the value of the file."""

    model_config = ConfigDict(extra="forbid")

    images: Positive | Empty = _same_as("synthesis", "images")
    iterations: Count | Empty = _same_as("synthesis", "iterations")
    batch_size: Annotated[int, Field(ge=2)] | Empty = _same_as("synthesis", "batch_size")
    min_confidence: Fraction | Empty = _same_as("synthesis", "min_confidence")
    seed: Seed | Empty = _same_as("synthesis", "seed")
    rounds: Annotated[int, Field(ge=0, le=32767)] | Empty = _same_as("adaptive", "rounds")
    steps: Positive | Empty = _same_as("distillation", "steps")
    seeds: tuple[Seed, ...] | Empty = _same_as("distillation", "seeds")
    noise_baseline: bool | Empty = _same_as("distillation", "noise_baseline")
    procedural_baseline: bool | Empty = _same_as("distillation", "procedural_baseline")
    data: FilePath | Empty = _same_as("evaluation", "data")
    device: Literal["auto", "cpu", "cuda"] | Empty = _same_as("execution", "device")
    workers: Few | Empty = _same_as("execution", "workers")
    dataset: FilePath | Empty = _same_as("paths", "dataset")
    students: FilePath | Empty = _same_as("paths", "students")
    reports: FilePath | Empty = _same_as("paths", "reports")

    @model_serializer(mode="wrap")
    def _without_empty(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Prefect shows the default as the values that the form begins with."""
        values: dict[str, Any] = serialise(self)
        return {name: value for name, value in values.items() if value is not None}

    def overrides(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """These values by the keys of the parameter file, and ``more``, which wins over them."""
        given = self.model_dump(mode="json")
        fields = type(self).model_fields
        return {**{str(fields[name].title): value for name, value in given.items()}, **(more or {})}


AS_IN_FILE = Settings()
"""The default: every value is the parameter file's."""
