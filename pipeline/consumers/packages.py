"""Import a tool that is installed only where it is used."""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.errors import UserError


def import_tool(name: str) -> Any:
    """Import a module of the extra ``calibrate``.

    Raises:
        UserError: the package is not installed, or it misses another package.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        tool, missing = (text.partition(".")[0] for text in (name, error.name or name))
        raise UserError(
            f"calibration with {tool} needs the package {missing}: "
            "pip install -c constraints.txt -e '.[calibrate]'"
        ) from error
