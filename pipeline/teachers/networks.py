"""Build networks from their sources, and load and digest their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.errors import UserError
from pipeline.storage import Location
from pipeline.teachers.checkpoints import WeightsFile, read_checkpoint
from pipeline.teachers.registry import SOURCES, find_source, scheme_of, source_forms
from pipeline.teachers.source import error_line
from pipeline.teachers.state_dicts import choose_state, expected_tensors, was_folded
from pipeline.teachers.tensor_checks import broken_values, wrong_tensor


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """What :func:`load_weights` read.

    Attributes:
        files: The files, with the digests of the bytes that were read.
        note: What the user may not expect about the choice of a state dict and its names.
        doubtful: Whether the file holds another state dict that fits.
    """

    files: tuple[WeightsFile, ...]
    note: str
    doubtful: bool


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
        UserError: The source is not found, fails, or does not return a ``torch.nn.Module`` of
            Python code whose weights exist.
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
    if lazy := next((n for n, p in network.named_parameters() if is_lazy(p)), None):
        raise UserError(
            f"{role}.source {source} has lazy layers (first: {lazy.rpartition('.')[0] or lazy}), "
            "which have no weights before their first call: name their sizes, or call the network "
            "once in its factory"
        )
    return network.float()


def load_weights(
    network: nn.Module,
    path: Location,
    role: str,
    key: str | None = None,
    sha256: str | None = None,
) -> LoadedWeights:
    """Load the weights of ``network`` from a file, which is read once.

    Every name and shape must match. A prefix that all names share is taken off where everything
    then matches.

    Args:
        network: The network, on the CPU.
        path: The file.
        role: The section of the parameters that error messages name.
        key: ``weights_key``: which state dict of the file to take.
        sha256: The expected digest of the file.

    Raises:
        UserError: The file is missing, has another digest, is no state dict, does not fit, or holds
            values that cannot be used.
    """
    checkpoint = read_checkpoint(path, role, key, sha256)
    choice = choose_state(network, checkpoint, lambda state: _renamed(network, state))
    fit, expected, place = choice.fit, expected_tensors(network), f"{role}.weights {path}"
    if (wrong := wrong_tensor(fit.state, expected)) != "":
        raise UserError(f"{place} cannot be used: {wrong}")
    try:
        missing, unexpected = network.load_state_dict(fit.state, strict=False)
    except RuntimeError as error:
        shapes = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        first = shapes[0] if shapes else error_line(error)
        raise UserError(
            f"{place} does not fit {role}.source: {first.rstrip('.')}{choice.advice}. Set "
            f"{role}.source and {role}.arguments to those of the trained network, as in "
            "{num_classes: 20} for torchvision"
        ) from error
    missing = [name for name in missing if name in fit.missing]
    if missing or unexpected:
        why = ": its BatchNorm was folded into the convolutions, name the weights before folding"
        raise UserError(
            f"{place} does not fit {role}.source: {len(missing)} keys missing{_first(missing)}, "
            f"{len(unexpected)} unexpected{_first(unexpected)}"
            f"{why if was_folded(fit, expected) else choice.advice}"
        )
    if broken := broken_values(network):
        raise UserError(f"{place} holds NaN or infinite values{_first(broken)}")
    return LoadedWeights(checkpoint.files, choice.note, choice.doubtful)


def _renamed(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let the libraries rename the keys of an older version of their models."""
    for kind in SOURCES.values():
        state = kind.rename(network, state)
    return state


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
