"""The sections ``evaluation``, ``execution`` and ``paths``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.fields import Few, Name, Section
from pipeline.config.networks import TeacherConfig


class EvaluationConfig(Section):
    """What only the last stages read, and nothing is made or trained with: real, labelled images, a
    tar of ``png`` and ``cls``; images of another recipe, a shard of them; and an independent
    network of the same classes."""

    data: Name | None = None
    foreign: Name | None = None
    verifier: TeacherConfig | None = None


class ExecutionConfig(Section):
    """Where the work runs. Nothing here changes what is made."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Few | None = None
    dask_address: Name | None = None
    retries: Annotated[int, Field(ge=0, le=1000)] = 2


class PathsConfig(Section):
    """Where results go: local directories, or for all but the reports any URL of fsspec's."""

    dataset: Name = "data/synthetic"
    students: Name = "data/students"
    reports: Name = "reports"

    @model_validator(mode="after")
    def _places(self) -> Self:
        if "://" in self.reports:
            raise ValueError(f"reports is {self.reports}, and must be a local directory")
        for name in ("dataset", "students"):
            protocol, separator, rest = getattr(self, name).partition("://")
            enough = "/" in rest.strip("/") or (protocol in ("memory", "file") and rest.strip("/"))
            if separator and not (protocol.isalnum() and enough):
                raise ValueError(f"{name} is {getattr(self, name)}: write protocol://bucket/prefix")
        return self

    @model_validator(mode="after")
    def _apart(self) -> Self:
        paths = [Path(p).resolve() for p in (self.dataset, self.students, self.reports)]
        if len(set(paths)) < 3:
            raise ValueError("dataset, students and reports must be three directories")
        noise = paths[0].with_name(f"{paths[0].name}-noise")
        for name, path in (("students", paths[1]), ("reports", paths[2])):
            if path == noise:
                raise ValueError(f"{name} must not be {noise.name}: that is for images of noise")
            if paths[0] in path.parents:
                raise ValueError(f"{name} must not lie in dataset, which holds just its own files")
        return self

    @model_validator(mode="after")
    def _plain(self) -> Self:
        for name in ("dataset", "students", "reports"):
            if getattr(self, name).startswith("~"):
                raise ValueError(f"{name}: ~ has no meaning here, write the whole path")
        return self
