"""Several processes that train one student together, a share of every batch each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Share:
    """The ``index``-th of ``of`` equal, contiguous parts of every batch."""

    index: int = 0
    of: int = 1

    def cut(self, count: int) -> slice:
        """Where this share lies in ``count`` things."""
        own = count // self.of
        return slice(self.index * own, (self.index + 1) * own)

    def take(self, whole: Tensor) -> Tensor:
        """This share of the first dimension."""
        return whole[self.cut(len(whole))]


WHOLE = Share()
