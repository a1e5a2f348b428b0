"""The global state of torch: default type, default device, gradients and autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def restored_torch_state() -> Iterator[None]:
    """Restore the default type, the default device and the gradient mode when the block ends."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    gradients = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None)
            if torch.get_default_device() != device:
                torch.set_default_device(device)


@contextlib.contextmanager
def usual_torch_state() -> Iterator[None]:
    """Give this block torch's initial state, and its caller the previous one when it ends.

    Inside, new tensors are float32 on the CPU, gradients are on, and autocast is off.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(restored_torch_state())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        yield
