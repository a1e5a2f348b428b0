"""Several processes, started by ``torchrun``, train one student together.

Each process computes a share of every batch. Each holds the whole student and updates it in the
same way, from gradients that are averaged over the processes. A process that torchrun did not start
is alone, and the functions of this module then change nothing.
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
PATIENCE = timedelta(hours=6)  # How long other processes wait while the first one works alone.


@dataclass(frozen=True, slots=True)
class Share:
    """One of several equal, contiguous parts of every batch.

    Attributes:
        index: Number of the part, counted from 0.
        of: Number of parts.
    """

    index: int = 0
    of: int = 1

    def cut(self, count: int) -> slice:
        """Return the slice of this share in a sequence of ``count`` elements."""
        own = count // self.of
        return slice(self.index * own, (self.index + 1) * own)

    def take(self, whole: Tensor) -> Tensor:
        """Return this share of a tensor's first dimension."""
        return whole[self.cut(len(whole))]


WHOLE = Share()


def own_share() -> Share:
    """Return the share of this process."""
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else WHOLE


def is_first() -> bool:
    """Return whether this process is the one that writes files and messages."""
    return own_share().index == 0


@contextlib.contextmanager
def joined(device: str) -> Iterator[str | None]:
    """Join the processes that torchrun started.

    Args:
        device: ``execution.device``: ``cpu``, ``cuda`` or ``auto``.

    Yields:
        The device of this process, or None where torchrun did not start it.

    Raises:
        UserError: torchrun started more processes than this machine has GPUs.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield None
        return
    own = _own_device(device)
    dist.init_process_group("gloo" if own == "cpu" else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
    yield own
    # After an exception the group stays: leaving it would wait for the others, which wait for this
    # process. They fail when this process has ended.
    dist.destroy_process_group()


def from_first(compute: Callable[[], T]) -> T:
    """Call a function in the first process only, and share its result.

    Args:
        compute: Function whose result can be pickled.

    Returns:
        The result of the first process, in every process. If the function raises there, every
        process raises the same error.
    """
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
    """Average a tensor over the processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of parameters over the processes.

    All gradients are summed as one tensor whose layout never changes. DistributedDataParallel
    changes the layout of its buckets after the first step, so that a resumed run would sum in
    another order and end in other last bits.

    Args:
        parameters: The same parameters in the same order in every process.
    """
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
            "lower --nproc_per_node to that number, or set execution.device to cpu"
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}"
