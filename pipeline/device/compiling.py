"""``torch.compile``: how functions are compiled, and what to do when that fails."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from pipeline.device.memory import is_out_of_memory
from pipeline.device.vector_loads import use_vector_loads
from pipeline.errors import first_line

COMPILED_SIZES = 64  # shapes of a batch that torch.compile may compile in one process
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A compiler that writes too large a file is killed with this message. Python ignores the signal.
_FILE_SIZE_SIGNAL = "File size limit exceeded"


P = ParamSpec("P")
R = TypeVar("R")


def compile_function(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function that calls networks.

    Sizes are not dynamic: the kernels of a batch must not depend on the sizes of earlier batches.
    Sizes above ``COMPILED_SIZES`` run eagerly. The hooks of a network are compared before each
    call, which ``torch.compile`` leaves out by default: two networks that differ in their hooks
    alone would share one compiled function, and one of them would get wrong results.
    """
    from torch._dynamo import config as dynamo

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    dynamo.recompile_limit = COMPILED_SIZES
    dynamo.skip_nnmodule_hook_guards = False
    use_vector_loads()
    return torch.compile(function, dynamic=False)


def explain_compile_error(error: Exception) -> str:
    """Decide whether work may continue uncompiled after an error of the first compiled call.

    It may, unless memory or disk space ran out. Those errors may not occur in the next run, and
    the next run would then compile: last bits of the results would depend on the run.

    Args:
        error: The error of the first compiled call.

    Returns:
        The reason in one line, for a warning.

    Raises:
        OSError: The compiler found the disk full.
        Exception: ``error`` itself, if the device has too little memory.

    Example::

        try:
            return compiled(images)
        except Exception as error:
            log.warning("continuing uncompiled: %s", explain_compile_error(error))
            return eager(images)
    """
    if is_out_of_memory(error):
        raise error
    refuse_full_disk(error)
    return first_line(error)


def refuse_full_disk(error: BaseException) -> None:
    """Recognise "disk full" inside a compile error, so that the run stops.

    Args:
        error: An error of compiling. Its text mostly comes from the C++ compiler.

    Raises:
        OSError: The disk is full, a quota is used up, or a file is too large.
    """
    text = str(error)
    for number in DISK_FULL:
        reason = os.strerror(number)
        if reason in text or (number == errno.EFBIG and _FILE_SIZE_SIGNAL in text):
            raise OSError(
                number,
                f"{reason}: compiling needs some disk space, in the directory for temporary files "
                "or in TORCHINDUCTOR_CACHE_DIR. Free some space and run the command again",
            ) from error
