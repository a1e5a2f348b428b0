"""Import the packages of the extra ``calibrate``, which are optional."""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.errors import UserError


def import_tool(name: str) -> Any:
    """Import a module of the extra ``calibrate``.

    Args:
        name: the dotted name of the module.

    Returns:
        The module.

    Raises:
        UserError: the package, or another package that it needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        tool, missing = (text.partition(".")[0] for text in (name, error.name or name))
        raise UserError(
            f"calibration with {tool} needs the package {missing}: "
            "pip install -c constraints.txt -e '.[calibrate]'"
        ) from error
