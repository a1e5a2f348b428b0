"""The number format in which a device computes networks."""

from __future__ import annotations

import functools
import platform
from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]


def precision_on(device: torch.device, choice: PrecisionChoice) -> Precision:
    """Resolve ``auto`` to bfloat16 where the device's hardware has it, and to float32 elsewhere.

    Args:
        device: Device that will compute.
        choice: The configured precision.
    """
    if choice != "auto":
        return choice
    return "bfloat16" if has_bfloat16(device) else "float32"


@functools.cache  # Muon calls this function in each step.
def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device's hardware multiplies bfloat16.

    NVIDIA GPUs have it since Ampere, x86 processors with the extension AVX512-BF16. Other devices
    may emulate bfloat16; docs/results/speed.md says how slowly.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    onednn = torch.backends.mkldnn.is_available()
    if not (onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    # oneDNN also returns True for AVX-512 without the extension, and then emulates bfloat16.
    return platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_avx512_bf16_supported()


def channels_last(network: nn.Module) -> nn.Module:
    """Put a network's 4-dimensional weights into channels-last layout.

    Convolutions in bfloat16 are fastest in this layout.

    Args:
        network: Changed in place.

    Returns:
        The same network.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        # `Module.to(memory_format=...)` raises for the 5-dimensional weights of a Conv3d.
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network
