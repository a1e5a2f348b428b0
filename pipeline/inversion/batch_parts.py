"""Divides a batch that is too large for the memory into equal parts: 2, 4, 8 and so on.

The parts depend only on the batch and on the size of the memory. So the same device makes the same
bytes again, in any order of the batches, and whether or not the process knows the limit already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from torch import Tensor

from pipeline.dataset.plan import Batch, derive_seed
from pipeline.device.memory import is_out_of_memory, release
from pipeline.errors import UserError
from pipeline.inversion.engine import Engine
from pipeline.inversion.selection import Kept

SMALLEST = 2  # images of a part: BatchNorm statistics need more than one
log = logging.getLogger(__name__)
Report = Callable[[float], None]
Make = Callable[[Batch, Tensor, list[Kept], Report], Kept]
"""``make(part, labels, before, report)`` makes the images of a part of a batch.

``before`` are the finished parts of the same batch. ``report`` takes the progress in images.
"""


def invert_in_parts(
    engine: Engine, batch: Batch, labels: Tensor, make: Make, report: Report
) -> list[tuple[Batch, Kept]]:
    """Make the images of a batch, at once or, where the memory is too small, in parts.

    ``engine.capacity`` keeps the sizes that did not fit, so that later batches do not try them.

    Args:
        engine: Makes the images. It is told to forget a failed step.
        batch: The size, the seed and the number of candidates.
        labels: The classes of the batch, int64 ``[B]``.
        make: Makes the images of one part.
        report: Takes the progress in images. It takes negative numbers for work that is lost.

    Returns:
        Each part and its images, in the order of ``labels``.

    Raises:
        UserError: Even the smallest parts do not fit.
        RuntimeError: A size that fitted before does not fit now (:class:`Capacity`).
    """
    known = engine.capacity.too_large
    for parts in partitions(batch):
        largest = parts[0].candidates
        if not engine.capacity.may_hold(largest):
            continue
        results = _make_all(engine, parts, labels, make, report)
        if results is not None:
            if known is None and engine.capacity.too_large is not None:  # warn once
                log.warning(
                    "the memory does not hold %d images at once: they are optimised %d at a time, "
                    "and each shard's record says so",
                    engine.capacity.too_large,
                    largest,
                )
            return list(zip(parts, results, strict=True))
    raise UserError(
        f"the memory of this device does not hold even {largest} images at once: "
        "set synthesis.checkpointing to true, lower synthesis.batch_size, or free some memory"
    )


def partitions(batch: Batch) -> Iterator[list[Batch]]:
    """The batch as one part, two, four and so on: parts of nearly equal size, the largest first.

    The candidates of a part decide how much memory it needs.

    Args:
        batch: the planned batch.
    """
    yield [batch]
    number, most = 1, batch.size // SMALLEST
    while number < most:
        number = min(2 * number, most)
        yield [
            Batch(
                batch.size // number + (i < batch.size % number),
                derive_seed(batch.seed, number, i),
                batch.candidates // number + (i < batch.candidates % number),
            )
            for i in range(number)
        ]


def _make_all(
    engine: Engine, parts: list[Batch], labels: Tensor, make: Make, report: Report
) -> list[Kept] | None:
    """The images of all parts, or None if one part does not fit."""
    results: list[Kept] = []
    done = 0
    for part, part_labels in zip(parts, labels.split([part.size for part in parts]), strict=True):
        result = _try(engine, part, part_labels, results, make, report)
        if result is None:
            # Try again: memory that this process kept from earlier work must not decide.
            result = _try(engine, part, part_labels, results, make, report)
        if result is None:
            report(-done)
            engine.capacity.record_failure(part.candidates)
            return None
        engine.capacity.record_success(part.candidates)
        results.append(result)
        done += part.size
    return results


def _try(
    engine: Engine, part: Batch, labels: Tensor, before: list[Kept], make: Make, report: Report
) -> Kept | None:
    """The images of one part, or None if the memory is too small for it."""
    reported = 0.0

    def count(images: float) -> None:
        nonlocal reported
        reported += images
        report(images)

    try:
        return make(part, labels, before, count)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler, because the error itself holds on to the tensors of the failed step.
    engine.forget()
    release(engine.teacher.device)
    report(-reported)
    return None
