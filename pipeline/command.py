"""What the command line knows of a command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command: ``function`` is ``module.function`` below :mod:`pipeline.commands`."""

    name: str
    function: str
    summary: str
    description: str
    example: str
    add: Callable[[argparse.ArgumentParser], None] | None = None
    reads_params: bool = True
