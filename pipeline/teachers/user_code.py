"""Run code of a user, such as a factory, so that it can end neither the program nor its output."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator

from torch import nn

from pipeline.device.torch_state import restored_torch_state
from pipeline.errors import StopRequested, UserError
from pipeline.teachers.source import error_line

_SCRIPT = (
    'put what runs as a script below `if __name__ == "__main__":`, or move the factory to a file '
    "that only defines the network"
)


@contextlib.contextmanager
def user_code(origin: str, role: str, doing: str) -> Iterator[None]:
    """Turn whatever ends a user's code into one sentence that names its file.

    The code sees no command line (``sys.argv`` holds its own name) and an empty standard input. It
    prints to stderr, because stdout belongs to the command. If it changes the current folder, the
    previous one returns afterwards: the paths in the parameters are relative to that. So do the
    defaults of torch. ``os._exit`` and crashes of native code end the process and cannot be caught.

    Args:
        origin: The file or module, for messages.
        role: The section of the parameters that names it.
        doing: "imported" or "called".

    Raises:
        UserError: The code ends the program, raises KeyboardInterrupt or another exception that is
            no ``Exception``, or asks for input.
    """
    words, place = sys.argv, _current_folder()
    stdin, stderr = sys.stdin, sys.stderr
    sys.argv, sys.stdin = [origin], io.StringIO()
    try:
        with restored_torch_state(), contextlib.redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        code = "" if error.code is None else f"{error.code!r:.60}"
        raise UserError(
            f"{role}.source: {origin} ends the program (sys.exit({code})) when it is {doing}: "
            f"{_SCRIPT}"
        ) from error
    except EOFError as error:
        raise UserError(
            f"{role}.source: {origin} asks for input when it is {doing}, but there is none: "
            f"{_SCRIPT}"
        ) from error
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and _is_real(error):
            raise
        raise UserError(
            f"{role}.source: {origin} raises {error_line(error)} when it is {doing}: {_SCRIPT}"
        ) from error
    finally:
        sys.argv, sys.stdin, sys.stderr = words, stdin, stderr
        if place is not None and place != _current_folder():
            os.chdir(place)


@contextlib.contextmanager
def same_folder(role: str) -> Iterator[None]:
    """Refuse a forward pass that changes the current folder, and restore the folder.

    Relative paths of the parameters would mean other files after it.

    Raises:
        UserError: The folder changed.
    """
    place = _current_folder()
    try:
        yield
    finally:
        other = _current_folder()
        if place is not None and place != other:
            os.chdir(place)
    if place != other:
        raise UserError(
            f"the {role}'s forward pass changes the current folder to {other}: remove os.chdir()"
        )


@contextlib.contextmanager
def taking_images(network: nn.Module, shape: tuple[int, int, int], role: str) -> Iterator[None]:
    """Turn an error of a forward pass into one that says which images the network refuses.

    Args:
        network: The network that is called inside.
        shape: Channels, height and width of an image.
        role: The network that error messages name.

    Raises:
        UserError: The forward pass failed, or it changed the current folder.
    """
    try:
        with same_folder(role):
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(_refusal(network, shape, role, error)) from error


def _refusal(network: nn.Module, shape: tuple[int, int, int], role: str, error: Exception) -> str:
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    if first is not None and first.in_channels != shape[0]:
        return (
            f"teacher.input.channels is {shape[0]}, but the first convolution of the {role} takes "
            f"{first.in_channels}"
        )
    text = str(error).strip().splitlines()
    return (
        f"the {role} cannot take images of teacher.input {shape[0]}x{shape[1]}x{shape[2]}: "
        f"{text[0] if text else type(error).__name__}"
    )


def _current_folder() -> str | None:
    """The current folder; None if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _is_real(error: KeyboardInterrupt) -> bool:
    """Whether somebody pressed Ctrl-C; unknown, so True, where Python's own handler is active."""
    own_handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, StopRequested) or own_handler
