"""Numbers with a range, as types of fields. ``pydantic`` refuses a value outside of the range."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=0, lt=2**31)]
Few = Annotated[int, Field(ge=1, le=1024)]
Weight = Annotated[float, Field(ge=0)]
Spread = Annotated[float, Field(ge=0, le=10)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
ScaleCount = Annotated[int, Field(ge=1, le=12)]
