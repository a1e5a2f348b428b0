"""A batch that the device's memory does not hold is optimised in equal parts: 2, 4, 8 ...

The parts follow from the batch and from the device alone, so that the same device makes the same
bytes again, in whatever order and whether or not its process has met the limit before.
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

SMALLEST = 2  # images of a part: there are no statistics of one
log = logging.getLogger(__name__)
Report = Callable[[float], None]
Make = Callable[[Batch, Tensor, list[Kept], Report], Kept]
"""``make(part, labels, before, report)``: the images of a part of a batch, after those ``before``
it; their progress is told in images."""


def invert_in_parts(
    engine: Engine, batch: Batch, labels: Tensor, make: Make, report: Report
) -> list[tuple[Batch, Kept]]:
    """What ``make`` makes of a batch: whole or, where the memory is too small, of its parts.

    ``labels`` are int64 ``[B]``. The size that did not fit is kept in ``engine.too_large``, and no
    batch that comes later is tried at that size or above.

    Raises:
        UserError: not even the smallest parts fit.
        RuntimeError: as many as fitted before do not now: that is not the device's limit, and must
            not decide what the images are. Another process may take the job.
    """
    known = engine.too_large
    for parts in _partitions(batch):
        largest = parts[0].candidates
        if engine.too_large is not None and largest >= engine.too_large:
            continue
        results = _make_all(engine, parts, labels, make, report)
        if results is not None:
            if known is None and engine.too_large is not None:  # said once
                log.warning(
                    "the memory does not hold %d images at once: they are optimised %d at a time, "
                    "as each shard's record says",
                    engine.too_large,
                    largest,
                )
            return list(zip(parts, results, strict=True))
        engine.too_large = largest
    raise UserError(
        f"the memory of this device does not hold even {largest} images at once: "
        "set synthesis.checkpointing to true, lower synthesis.batch_size, or free some of it"
    )


def _partitions(batch: Batch) -> Iterator[list[Batch]]:
    """The batch whole, halved, quartered ...: parts of nearly one size, the largest first.

    What counts against the memory is a part's candidates.
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
    """The images of all parts, or None if one does not fit."""
    results: list[Kept] = []
    done = 0
    for part, of_part in zip(parts, labels.split([part.size for part in parts]), strict=True):
        result = _try(engine, part, of_part, results, make, report)
        if result is None:  # once more: what this process had kept of earlier work must not decide
            result = _try(engine, part, of_part, results, make, report)
        if result is None:
            report(-done)
            if part.candidates <= engine.held:
                raise RuntimeError(
                    f"the memory held {engine.held} images at once before, "
                    f"and not {part.candidates} now"
                )
            return None
        engine.held = max(engine.held, part.candidates)
        results.append(result)
        done += part.size
    return results


def _try(
    engine: Engine, part: Batch, labels: Tensor, before: list[Kept], make: Make, report: Report
) -> Kept | None:
    told = 0.0

    def tell(images: float) -> None:
        nonlocal told
        told += images
        report(images)

    try:
        return make(part, labels, before, tell)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Only here: the error itself holds on to the tensors of the step that failed.
    engine.forget()
    release(engine.teacher.device)
    report(-told)
    return None
