"""Several processes that train one student together, a share of every batch each: ``torchrun``'s.

Each holds the whole student and steps it in the same way, from gradients that are averaged over
all. A process that torchrun did not start is the only one, and nothing here changes what it does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(hours=6)  # for the first process, while it makes what all others wait for


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


def own_share() -> Share:
    """Of this process."""
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else WHOLE


def is_first() -> bool:
    """Whether this process writes files and speaks to the user."""
    return own_share().index == 0


@contextlib.contextmanager
def joined(device: str) -> Iterator[str | None]:
    """Join the processes that torchrun started; yields this one's device, or None where torchrun
    did not start it.

    Args:
        device: ``execution.device``.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield None
        return
    own = _own_device(device)
    dist.init_process_group("gloo" if own == "cpu" else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
    yield own
    # Not after an exception: the others may be waiting for this process, until it has ended.
    dist.destroy_process_group()


def from_first(compute: Callable[[], T]) -> T:
    """What ``compute`` returns or raises in the first process, which alone calls it."""
    if own_share().of == 1:
        return compute()
    answer: list[Any] = [None, None]
    if is_first():
        try:
            answer[0] = compute()
        except Exception as error:
            answer[1] = error
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    result: T = answer[0]
    return result


def average(values: Tensor) -> Tensor:
    """The mean of ``values`` over the processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Over the processes, as one tensor whose layout never changes: DistributedDataParallel lays
    out its buckets anew after the first step, and sums a resumed run in another order."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = average(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    pieces = flat.split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view(gradient.shape))


def _own_device(device: str) -> str:
    devices = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and not devices):
        return "cpu"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= devices:
        raise UserError(
            f"torchrun started a process for GPU {local}, but this machine has {devices}: "
            "lower --nproc_per_node, or set execution.device to cpu"
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}"
