"""Build networks from their sources, and load and digest their weights."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.storage import Location, exists, read_bytes
from pipeline.teachers.registry import SOURCES, find_source, scheme_of, source_forms
from pipeline.teachers.source import error_line

_WRAPPERS = ("state_dict", "model", "model_state_dict")


def build_network(
    source: str, arguments: Mapping[str, Any], role: str, weights: str | None = None
) -> nn.Module:
    """Build the network that a source names, with its own initial weights, in float32.

    Args:
        source: A source in one of the forms of :func:`pipeline.teachers.registry.source_forms`.
        arguments: Keyword arguments of the factory or model.
        role: The section of the parameters that error messages name: "teacher" or "student".
        weights: The weights that will be loaded. They are not read here, but they tell a library
            which variant of the model to build.

    Raises:
        UserError: The source is not found, fails, or does not return a ``torch.nn.Module``.
    """
    origin, _, last = source.rpartition(":")
    if not origin or not last:
        raise UserError(f"{role}.source is {source!r}: write {source_forms()}")
    kind, name = find_source(source)
    try:
        network = kind.build(name, arguments, weights, role)
    except UserError:
        raise
    except TypeError as error:
        raise UserError(f"{role}.arguments does not fit {source}: {error}") from error
    except Exception as error:
        raise UserError(f"{role}.source {source} failed: {error_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{role}.source {source} returned {type(network).__name__}, not a torch.nn.Module"
        )
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise UserError(
            f"{role}.source {source} returned TorchScript, whose layers cannot be inspected: "
            f"name a factory of the Python class, and save its state_dict() for {role}.weights"
        )
    return network.float()


def load_weights(network: nn.Module, path: Location, role: str) -> None:
    """Load the weights of ``network`` from a file. Every key and shape must match.

    Raises:
        UserError: The file is missing, is not a state dict, does not fit, or holds NaN.
    """
    state = read_state_dict(path, role)
    for kind in SOURCES.values():
        state = kind.rename(network, state)
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        shapes = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        first = shapes[0] if shapes else error_line(error)
        raise UserError(
            f"{role}.weights {path} does not fit {role}.source: {first.rstrip('.')}. Set "
            f"{role}.source and {role}.arguments to those of the trained network, as in "
            "{num_classes: 20} for torchvision"
        ) from error
    # Old checkpoints lack BatchNorm's step counter, which eval mode does not read.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        folded = any(key.endswith("running_mean") for key in missing) and any(
            key.endswith(".bias") for key in unexpected
        )
        why = ": its BatchNorm was folded into the convolutions, name the weights before folding"
        raise UserError(
            f"{role}.weights {path} does not fit {role}.source: "
            f"{len(missing)} keys missing{_first(missing)}, "
            f"{len(unexpected)} unexpected{_first(unexpected)}{why if folded else ''}"
        )
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(f"{role}.weights {path} holds NaN or infinite values{_first(broken)}")


def read_state_dict(path: Location, role: str) -> dict[str, Tensor]:
    """Read the named tensors of a safetensors or PyTorch file, on the CPU.

    A PyTorch file is read with ``weights_only=True``: nothing in it is executed. One level of
    wrapping (``{"state_dict": ...}``) and the prefix ``module.`` of DataParallel are removed.

    Raises:
        UserError: The file is missing, unreadable, or is not a state dict.
    """
    if not exists(path):
        raise UserError(f"{role}.weights: there is no file {path}")
    try:
        data = read_bytes(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{role}.weights {path} holds more than tensors, and loading it could run code: "
            "save its state_dict() and name that file"
        ) from error
    except Exception as error:
        raise UserError(f"{role}.weights {path} cannot be read: {error_line(error)}") from error
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{role}.weights {path} is not a state dict (names to tensors)")
    return {str(key).removeprefix("module."): tensor for key, tensor in state.items()}


def weights_file(source: str, weights: str, role: str) -> Path:
    """The file with the weights of a source.

    Args:
        source: The source of the architecture.
        weights: A path, ``pretrained``, or another name of weights that the source publishes.
        role: The section of the parameters that error messages name.

    Returns:
        The file of the published weights, or ``weights`` itself as a path, which may not exist.

    Raises:
        UserError: The source publishes no such weights, or they cannot be fetched.
    """
    if Path(weights).is_file():
        return Path(weights)
    kind, name = find_source(source)
    return kind.weights(name, weights, role) or Path(weights)


def digest_network(network: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def factory_file(source: str, role: str) -> Path | None:
    """The user's file that defines the network, or None where a package defines it."""
    kind, name = find_source(source)
    return kind.code_file(name, role)


def factory_digest(source: str, role: str) -> str | None:
    """SHA-256 of the code of :func:`factory_file` as this process runs it, or None."""
    kind, name = find_source(source)
    return kind.code_digest(name, role)


def public_source(source: str) -> str:
    """``source`` without the folders of this machine, for files that are published."""
    kind, name = find_source(source)
    return f"{scheme_of(source)}:{kind.public(name)}".removeprefix(":")


def _first(names: list[str]) -> str:
    return f" (first: {names[0]})" if names else ""
