"""Turn a trained image classifier into a sharded, class-balanced dataset.

The names below are the Python API; ``docs/api.md`` shows each in use. They are imported on first
use, so that ``import pipeline`` loads neither torch nor pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api.dataset import Dataset
    from pipeline.api.datasets import synthesize, verify
    from pipeline.api.inversions import Inversion, invert
    from pipeline.api.students import Student, distill
    from pipeline.params import load_params

__version__ = "0.1.0"
__all__ = [
    "Dataset",
    "Inversion",
    "Student",
    "__version__",
    "distill",
    "invert",
    "load_params",
    "synthesize",
    "verify",
]
_HOMES = {
    "Dataset": "pipeline.api.dataset",
    "Inversion": "pipeline.api.inversions",
    "Student": "pipeline.api.students",
    "distill": "pipeline.api.students",
    "invert": "pipeline.api.inversions",
    "load_params": "pipeline.params",
    "synthesize": "pipeline.api.datasets",
    "verify": "pipeline.api.datasets",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
