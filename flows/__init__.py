"""Prefect flows over :mod:`pipeline`. They add retries and progress, and no other logic.

This package sets defaults for Prefect before it is imported: no usage data is sent, and progress
goes to the Logs tab but not to the terminal. A variable of the environment wins.
"""

import os

_LOGGING = {"PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING"}


def _wants_tracking() -> bool:
    """Whether the user asked for usage data by one of the two variables that decide it."""
    asked = os.environ.get("PREFECT_SERVER_ANALYTICS_ENABLED", "").lower()
    refused = os.environ.get("DO_NOT_TRACK", "").lower()
    return asked in ("1", "true", "yes", "on") or refused in ("0", "false", "no", "off")


if not _wants_tracking():
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
if not any(_name in os.environ for _name in _LOGGING):  # a level that the user set is for both
    os.environ.update(_LOGGING)
