"""What the user can fix, said in a sentence that tells how."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What ``error`` says, in one line; its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class UserError(Exception):
    """A wrong parameter, file or teacher. Commands print its text as one line and exit with 2."""


class TryAgainError(UserError):
    """Nothing is wrong with the input: what stands in the way may be over later. Exit code 1."""


class BadShardError(UserError):
    """A tar, or an image in it, that is not what this project writes or reads."""
