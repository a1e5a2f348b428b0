"""Errors that the user can fix. Their message says how."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class UserError(Exception):
    """A parameter, a file or a teacher is wrong. Commands print the message and exit with 2."""


class TryAgainError(UserError):
    """Something temporary blocks the run, such as a lock or a network error.

    The input is fine. Run the command again. Commands print the message and exit with 1.
    """


class BadShardError(UserError):
    """A tar or an image in it has another format than this project writes and reads."""


class StopRequested(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP, not a KeyboardInterrupt that a user's code raised by itself."""
