"""Turn errors into one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from pipeline.errors import BadShardError, TryAgainError, UserError

GO_ON = "Stopped. What is complete is kept: run the same command again to go on."


class Outcome:
    """An exit code that :func:`report_errors` may replace."""

    code = 0


@contextlib.contextmanager
def report_errors() -> Iterator[Outcome]:
    """Turn what the user can mend into one line and an exit code; SIGTERM stops like Ctrl-C."""
    outcome = Outcome()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        yield outcome
    except BadShardError as error:
        outcome.code = _fail(f"{error}: a shard of the dataset `verify --repair` makes again", 2)
    except UserError as error:
        outcome.code = _fail(str(error), 1 if isinstance(error, TryAgainError) else 2)
    except KeyboardInterrupt:
        outcome.code = _fail(GO_ON, 130)
    except (RuntimeError, OSError, FloatingPointError) as error:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        outcome.code = _fail(str(error), 1)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stop(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> int:
    print(f"dreamshard: {' '.join(message.split())}", file=sys.stderr)
    return code
