"""Turn errors into one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from pipeline.errors import BadShardError, TryAgainError, UserError
from pipeline.redaction import redact_secrets

STOPPED = "Stopped. Finished work is kept: run the same command again to continue."


class Outcome:
    """The exit code of a command; :func:`report_errors` sets it where the command fails."""

    code = 0


@contextlib.contextmanager
def report_errors() -> Iterator[Outcome]:
    """Turn an error of this block into one line on stderr and an exit code.

    SIGTERM stops the block like Ctrl-C does.

    Yields:
        An outcome: 0 for success, 1 for an error at work, 2 for wrong input, 130 for a stopped run.
    """
    outcome = Outcome()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        yield outcome
    except BadShardError as error:
        outcome.code = _fail(f"{error}. If it is a shard of the dataset: run `verify --repair`", 2)
    except UserError as error:
        outcome.code = _fail(str(error), 1 if isinstance(error, TryAgainError) else 2)
    except KeyboardInterrupt:
        outcome.code = _fail(STOPPED, 130)
    except (RuntimeError, OSError, FloatingPointError) as error:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        outcome.code = _fail(str(error), 1)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stop(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> int:
    print(f"dreamshard: {redact_secrets(' '.join(message.split()))}", file=sys.stderr)
    return code
