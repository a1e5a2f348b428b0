"""The standard streams of this process, which its caller may have closed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def with_stderr() -> Iterator[None]:
    """Send stderr to nowhere until the block ends, where this process has none.

    Python sets ``sys.stderr`` to None where the caller closed it (``2>&-``), and in programs with
    windows. Progress bars and the log of libraries need a stream.
    """
    if sys.stderr is not None:
        yield
        return
    with open(os.devnull, "w") as nowhere:
        sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stderr = None
