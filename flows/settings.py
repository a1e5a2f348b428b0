"""The fields of the form that Prefect's UI shows for a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.config.fields import Count, Few, FilePath, Fraction, Positive, Seed
from pipeline.config.schema import Config


def _same_as(section: str, key: str) -> Any:
    """A field with the description of a key of the parameter file, and the key as its title."""
    owner = Config.model_fields[section].annotation
    assert isinstance(owner, type) and issubclass(owner, BaseModel)
    field = owner.model_fields[key]
    text = " ".join((field.description or "").split()).replace("``", "`")
    default = "" if field.default is None else f", or {json.dumps(field.default)} if it has none"
    text = f"{text} Empty: the value of the parameter file{default}."
    return Field(default=None, title=f"{section}.{key}", description=text)


class Settings(BaseModel):
    """Values that replace those of the parameter file. Left empty: the value of the file."""

    model_config = ConfigDict(extra="forbid")

    images: Positive | None = _same_as("synthesis", "images")
    iterations: Count | None = _same_as("synthesis", "iterations")
    batch_size: Annotated[int, Field(ge=2)] | None = _same_as("synthesis", "batch_size")
    min_confidence: Fraction | None = _same_as("synthesis", "min_confidence")
    seed: Seed | None = _same_as("synthesis", "seed")
    rounds: Annotated[int, Field(ge=0, le=32767)] | None = _same_as("adaptive", "rounds")
    steps: Positive | None = _same_as("distillation", "steps")
    seeds: tuple[Seed, ...] | None = _same_as("distillation", "seeds")
    noise_baseline: bool | None = _same_as("distillation", "noise_baseline")
    procedural_baseline: bool | None = _same_as("distillation", "procedural_baseline")
    data: FilePath | None = _same_as("evaluation", "data")
    device: Literal["auto", "cpu", "cuda"] | None = _same_as("execution", "device")
    workers: Few | None = _same_as("execution", "workers")
    dataset: FilePath | None = _same_as("paths", "dataset")
    students: FilePath | None = _same_as("paths", "students")
    reports: FilePath | None = _same_as("paths", "reports")

    def overrides(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """These values by the keys of the parameter file, and ``more``, which wins over them."""
        given = self.model_dump(mode="json", exclude_none=True)
        fields = type(self).model_fields
        return {**{str(fields[name].title): value for name, value in given.items()}, **(more or {})}


AS_IN_FILE = Settings()
"""The default: every value is the parameter file's."""
