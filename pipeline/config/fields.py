"""Value types that several sections share, and the base class of all sections."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.objective.ranges import Count as Count
from pipeline.objective.ranges import Decay as Decay
from pipeline.objective.ranges import Few as Few
from pipeline.objective.ranges import Fraction as Fraction
from pipeline.objective.ranges import Rate as Rate
from pipeline.objective.ranges import Share as Share
from pipeline.objective.ranges import Weight as Weight

Positive = Annotated[int, Field(ge=1, lt=2**31)]
Side = Annotated[int, Field(ge=1, le=4096)]
Between = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _no_credentials(text: str) -> str:
    """Refuse a URL with credentials: parameters are written to files and logs."""
    _, separator, rest = text.partition("://")
    if separator and any(character in rest for character in "@?#"):
        raise ValueError(
            "the URL (not shown here) must not contain credentials or a query: write "
            "protocol://bucket/prefix and pass credentials in environment variables"
        )
    return text


def _fits_file_systems(text: str) -> str:
    """Refuse a path that is too long for a file system."""
    size, longest = len(os.fsencode(text)), max(len(os.fsencode(part)) for part in text.split("/"))
    if size > LONGEST_PATH or (longest > LONGEST_NAME and "://" not in text):
        raise ValueError(
            f"the path has {size} bytes, and the longest name in it {longest}: write at most "
            f"{LONGEST_PATH} bytes, and at most {LONGEST_NAME} between two slashes"
        )
    return text


LONGEST_NAME, LONGEST_PATH = 255, 4000  # Bytes. Linux takes 4095, with the names of our files.
Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$"), AfterValidator(_no_credentials)]
FilePath = Annotated[Name, AfterValidator(_fits_file_systems)]
AUTO = "auto"
MOST_IMAGES, MOST_SHARDS = 100_000_000, 900_000


class Section(BaseModel):
    """A section of the parameter file: unknown keys and values of another type are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # the input may be a URL with credentials
        use_attribute_docstrings=True,
    )
