"""Turn errors and signals into one line on stderr and an exit code. Imports nothing large."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from pipeline.errors import BadShardError, StopRequested, TryAgainError, UserError, first_line
from pipeline.redaction import redact_secrets
from pipeline.streams import with_stderr

STOPPED = "Stopped. Finished work is kept: run the same command again to continue."
INTERRUPTED = 130
HUNG_UP = 128 + signal.SIGHUP
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
READER_LEFT = 128 + signal.SIGPIPE
"""The exit code after `dreamshard ... | head`, as of other programs: the reader has enough."""
_LONG_WORD = re.compile(r"\S{200,}")


class Outcome:
    """The exit code of a command; :func:`report_errors` sets it where the command fails."""

    code = 0


def stop_at_once() -> None:
    """From now on Ctrl-C, SIGTERM and SIGHUP end the process with one line.

    For the time in which modules are imported. An exception would be swallowed or changed by the
    import of a library, and there is nothing to clean up yet. Standard streams that the caller
    closed are opened to nowhere, so that no later file takes their place.
    """
    for _ in range(3):
        number = os.open(os.devnull, os.O_RDWR)
        if number > 2:
            os.close(number)
            break
    for stop in STOPS:
        if signal.getsignal(stop) != signal.SIG_IGN:  # ignored by `nohup` or a background job
            signal.signal(stop, _exit_now)


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
    """As :func:`stop_at_once`, until the end of the block."""
    with _handling(_exit_now):
        yield


@contextlib.contextmanager
def report_errors() -> Iterator[Outcome]:
    """Turn an error of this block into one line on stderr and an exit code.

    Ctrl-C, SIGTERM and SIGHUP raise :class:`~pipeline.errors.StopRequested` in this block.

    Yields:
        An outcome: 0 for success, 1 for an error at work, 2 for wrong input, 129 and 130 for a
        stopped run, 141 where nothing reads the output any more.
    """
    outcome = Outcome()
    with with_stderr(), _handling(_stop):
        terminal = logging.StreamHandler()
        terminal.setLevel(logging.WARNING)  # Prefect hands its INFO lines on to this handler
        layout = "%(levelname)s %(name)s: %(message)s"
        logging.basicConfig(level=logging.WARNING, format=layout, handlers=[terminal])
        try:
            yield outcome
        except BadShardError as error:
            outcome.code = _fail(
                f"{error}. If it is a shard of the dataset: run `verify --repair`", 2
            )
        except UserError as error:
            outcome.code = _fail(str(error), 1 if isinstance(error, TryAgainError) else 2)
        except KeyboardInterrupt as error:
            outcome.code = _fail(STOPPED, _stop_code(error.args))
        except (RuntimeError, OSError, FloatingPointError, MemoryError) as error:
            logging.getLogger(__name__).debug("failed", exc_info=True)
            too_long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
            if isinstance(error, BrokenPipeError) and _reader_left():
                outcome.code = READER_LEFT
            else:
                outcome.code = _fail(str(error) or first_line(error), 2 if too_long else 1)
        finally:
            problem = _flush()
            if problem is not None:
                _drop_output()
                outcome.code = outcome.code or READER_LEFT
                if not isinstance(problem, BrokenPipeError):
                    outcome.code = _fail(f"the output cannot be written: {problem}", 1)


@contextlib.contextmanager
def _handling(handler: Callable[[int, object], NoReturn]) -> Iterator[None]:
    """Handle the signals of ``STOPS`` until the end of the block, where they are not ignored."""
    previous = {stop: signal.getsignal(stop) for stop in STOPS}
    previous = {stop: old for stop, old in previous.items() if old != signal.SIG_IGN}
    for stop in previous:
        signal.signal(stop, handler)
    try:
        yield
    finally:
        for stop, old in previous.items():
            signal.signal(stop, old)


def _stop(signum: int, frame: object) -> NoReturn:
    raise StopRequested(signum)


def _exit_now(signum: int, frame: object) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, f"dreamshard: {STOPPED}\n".encode())
    os._exit(_stop_code((signum,)))


def _stop_code(arguments: tuple[object, ...]) -> int:
    """The exit code after a signal; ``arguments`` are those of StopRequested."""
    return HUNG_UP if arguments == (signal.SIGHUP,) else INTERRUPTED


def _flush() -> OSError | None:
    """Send the buffered output; the error if nothing takes it."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _reader_left() -> bool:
    """Whether stdout or stderr is a pipe that nothing reads any more."""
    pipes = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or not a file
            pipes.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in pipes.poll(0))


def _drop_output() -> None:
    """Send stdout to nowhere, so that the buffered rest does not fail again at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _fail(message: str, code: int) -> int:
    text = redact_secrets(" ".join(message.split()))
    text = _LONG_WORD.sub(lambda word: f"{word[0][:100]}...", text)
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"dreamshard: {text}", file=sys.stderr)
    return code
