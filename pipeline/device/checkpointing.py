"""Gradient checkpointing: a block's activations are computed again when the gradient needs them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The innermost elements of lists of modules that are themselves no lists and not one layer.

    Of a ResNet its residual blocks, of a transformer its layers.
    """
    found: list[nn.Module] = []
    for child in network.children():
        element = isinstance(network, nn.Sequential | nn.ModuleList)
        listed = isinstance(child, nn.Sequential | nn.ModuleList)
        if element and not listed and next(child.children(), None) is not None:
            found.append(child)
        else:
            found += blocks_of(child)
    return found


@contextlib.contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Within the block, backpropagation keeps only what enters each block of ``network``.

    The arithmetic is the same, done twice. ``network`` must be deterministic (eval mode).
    """
    blocks = list(dict.fromkeys(blocks_of(network)))  # one may be used twice
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
