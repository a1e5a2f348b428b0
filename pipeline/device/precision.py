"""Which number format a device computes networks in: bfloat16 where its hardware has that."""

from __future__ import annotations

import functools
import platform
from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]


def precision_on(device: torch.device, choice: PrecisionChoice) -> Precision:
    """``choice`` itself, and for ``auto`` what the device is fast in."""
    if choice != "auto":
        return choice
    return "bfloat16" if has_bfloat16(device) else "float32"


@functools.cache  # Muon asks in each step
def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies bfloat16: NVIDIA's from Ampere on, x86 with AVX-512's
    instructions for it. Elsewhere torch may do without: docs/performance.md has how slowly."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    onednn = torch.backends.mkldnn.is_available()
    if not (onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    # oneDNN says so of all AVX-512: without the instructions it emulates them.
    return platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_avx512_bf16_supported()


def channels_last(network: nn.Module) -> nn.Module:
    """``network``, its weights laid out as bfloat16 convolutions are fastest; others stay."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:  # with those of a Conv3d, `Module.to` raises
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network
