"""The section ``paths``."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import model_validator

from pipeline.config.distillation import NOISE, PROCEDURAL
from pipeline.config.fields import FilePath, Section
from pipeline.errors import UserError


class PathsConfig(Section):
    """Where results are written. The three directories must be different."""

    dataset: FilePath = "data/synthetic"
    """The dataset: a local directory, or a URL that fsspec can write, such as
    ``s3://bucket/prefix``. Credentials come from the environment."""

    students: FilePath = "data/students"
    """The final students: a local directory or a URL. Must not lie inside ``dataset``."""

    reports: FilePath = "reports"
    """Metrics, plots and pictures: a local directory. Must not lie inside ``dataset``."""

    @model_validator(mode="after")
    def _writable_forms(self) -> Self:
        if "://" in self.reports:
            raise ValueError(f"reports is {self.reports}: name a local directory, not a URL")
        for name in ("dataset", "students"):
            protocol, separator, rest = getattr(self, name).partition("://")
            enough = "/" in rest.strip("/") or (protocol in ("memory", "file") and rest.strip("/"))
            if separator and not (protocol.isalnum() and enough):
                raise ValueError(f"{name} is {getattr(self, name)}: write protocol://bucket/prefix")
        return self

    @model_validator(mode="after")
    def _different_directories(self) -> Self:
        paths = [Path(p).resolve() for p in (self.dataset, self.students, self.reports)]
        if len(set(paths)) < 3:
            raise ValueError("dataset, students and reports must be three different directories")
        for name, path in zip(("dataset", "students", "reports"), paths, strict=True):
            if path == Path(path.anchor):
                raise ValueError(f"{name} is {path}, the root of the file system: name a folder")
        baselines = {
            paths[0].with_name(f"{paths[0].name}-{kind}"): kind for kind in (NOISE, PROCEDURAL)
        }
        for name, path in (("students", paths[1]), ("reports", paths[2])):
            if path in baselines:
                raise ValueError(
                    f"{name} must not be {path.name}: the {baselines[path]} baseline writes its "
                    "images there"
                )
            if paths[0] in path.parents:
                raise ValueError(
                    f"{name} must not lie inside dataset, which holds only the dataset's files"
                )
        return self

    @model_validator(mode="after")
    def _no_tilde(self) -> Self:
        for name in ("dataset", "students", "reports"):
            if getattr(self, name).startswith("~"):
                raise ValueError(f"{name}: ~ is not expanded, write the whole path")
        return self


def check_lasting(paths: PathsConfig) -> None:
    """Refuse places in the memory of this process, for programs that end after one command.

    Raises:
        UserError: The dataset or the students have such a place.
    """
    for name in ("dataset", "students"):
        place = getattr(paths, name)
        if place.startswith("memory://"):
            raise UserError(
                f"paths.{name} is {place}, which is lost when this command ends: name a directory "
                "or another URL (the Python API can use memory:// within one process)"
            )
