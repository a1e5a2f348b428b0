"""What a full disk says to a compiler: it passes, and is then no reason to go on without."""

from __future__ import annotations

import errno
import os

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SIGNAL = "File size limit exceeded"  # what it dies of; Python ignores that


def refuse_full_disk(error: BaseException) -> None:
    """Raise what ``error`` from compiling says of a full disk, if it does.

    A network that ran uncompiled for that would be as good, but not the same to the byte.

    Raises:
        OSError: it does.
    """
    text = str(error)  # the C++ compiler's own words, mostly
    for number in FULL:
        reason = os.strerror(number)
        if reason in text or (number == errno.EFBIG and _SIGNAL in text):
            raise OSError(
                number,
                f"{reason}: compiling needs some, in the directory of temporary files or in "
                "TORCHINDUCTOR_CACHE_DIR",
            ) from error
