"""Refuse tensors that cannot be loaded into a network without loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.teachers.places import StateDict

_RUNNING = ("running_mean", "running_var")


def wrong_tensor(state: StateDict, expected: StateDict) -> str:
    """Describe the first tensor that cannot be loaded without loss; empty where all can."""
    for name, tensor in state.items():
        mine = expected.get(name)
        kind = _odd_kind(tensor)
        if not kind and mine is not None:
            kind = _odd_type(tensor, mine)
        if kind:
            return f"{name} is {kind}"
    return ""


def broken_values(network: nn.Module) -> list[str]:
    """The names of parameters and running statistics that hold NaN or infinite values.

    Other buffers may be infinite, as an attention mask is.
    """
    values: list[tuple[str, Tensor]] = [*network.named_parameters()]
    values += [
        (name, buffer)
        for name, buffer in network.named_buffers()
        if name.rpartition(".")[2] in _RUNNING
    ]
    return [name for name, value in values if not bool(torch.isfinite(value).all())]


def _odd_kind(tensor: Tensor) -> str:
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}: save plain tensors"
    if tensor.is_nested:
        return "a nested tensor: save plain tensors"
    if tensor.is_quantized:
        return "quantised: name the weights from before the quantisation, or dequantize() them"
    if tensor.layout != torch.strided:
        return "sparse: save it with to_dense()"
    if tensor.device.type == "meta":
        return "on the meta device, so that the file holds no values: save the loaded network"
    return ""


def _odd_type(tensor: Tensor, mine: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_complex() and not mine.is_complex():
        return f"{kind}, whose imaginary parts would be lost: save real weights"
    if mine.is_floating_point() and not tensor.is_floating_point():
        return (
            f"{kind} where the network has floating-point numbers, and its scale is unknown: name "
            "the weights from before the quantisation"
        )
    if not mine.is_floating_point() and tensor.is_floating_point():
        whole = tensor.double()
        if not bool((whole == whole.round()).all()):
            return f"{kind} where the network has integers: name weights of this network"
    return ""
