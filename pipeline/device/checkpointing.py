"""Gradient checkpointing: less memory for activations, at the cost of a second forward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Find the blocks of a network: residual blocks of a ResNet, layers of a transformer.

    Args:
        network: Any network.

    Returns:
        Elements of ``nn.Sequential`` and ``nn.ModuleList`` that have layers inside and are not
        such lists themselves. Of nested blocks the outermost is returned.
    """
    blocks: list[nn.Module] = []
    for child in network.children():
        element = isinstance(network, nn.Sequential | nn.ModuleList)
        listed = isinstance(child, nn.Sequential | nn.ModuleList)
        if element and not listed and next(child.children(), None) is not None:
            blocks.append(child)
        else:
            blocks += blocks_of(child)
    return blocks


@contextlib.contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Checkpoint each block of a network inside a ``with`` statement.

    Backpropagation keeps only the input of each block and computes the block's activations a
    second time. The arithmetic of each pass is the same as without checkpointing.

    Args:
        network: A deterministic network, in eval mode. Its blocks' ``forward`` is replaced inside
            the ``with`` statement.

    Example::

        with checkpointed(network):
            (gradient,) = torch.autograd.grad(network(images).sum(), images)
    """
    blocks = list(dict.fromkeys(blocks_of(network)))  # A network may use one block twice.
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = functools.partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            del block.forward
            if own is not None:
                block.forward = own
