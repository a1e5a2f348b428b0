"""The section ``student``."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipeline.config.fields import Name, Section


class StudentConfig(Section):
    """The network to train on the synthetic images. Its weights start from scratch."""

    source: Name
    """Where the architecture comes from, in the same forms as ``teacher.source``."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory or of the library's model. The default is none."""
