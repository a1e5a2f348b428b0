"""Where a network comes from: a source string names the architecture, a file holds the weights."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import io
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.source_digest import source_digest
from pipeline.storage import Location, exists, read_bytes
from pipeline.teachers import in_memory, libraries

FORMS = (
    "`module:factory`, `path/to/file.py:factory`, `torchvision:NAME`, `timm:NAME`, `hf:ORG/NAME` "
    "or `hub:OWNER/REPO:ENTRY`"
)
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def build_network(
    source: str, arguments: Mapping[str, Any], role: str, weights: str | None = None
) -> nn.Module:
    """The network that ``source`` names, with its own initial weights, in float32.

    A factory is imported and called only because the user named it. ``role`` ("teacher",
    "student") is the section of the parameters that errors point at. ``weights``, which are not
    read, tell a library which variant of the model they are of.

    Raises:
        UserError: the source cannot be found, or did not return a Python module.
    """
    factory = _factory(source, role, weights)
    try:
        network = factory(**arguments)
    except UserError:
        raise
    except TypeError as error:
        raise UserError(f"{role}.arguments does not fit {source}: {error}") from error
    except Exception as error:
        raise UserError(f"{role}.source {source} failed: {_one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{role}.source {source} returned {type(network).__name__}, not a torch.nn.Module"
        )
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise UserError(
            f"{role}.source {source} returned TorchScript, into whose layers nobody can look: "
            f"name a factory of the Python class, and save its state_dict() for {role}.weights"
        )
    return network.float()


def load_weights(network: nn.Module, path: Location, role: str) -> None:
    """Fill ``network`` from a safetensors or PyTorch file, every key and shape matching.

    A PyTorch file is read with ``weights_only=True``: nothing in it is executed. One level of
    wrapping (``{"state_dict": ...}``) and the ``module.`` prefix of DataParallel are taken off.

    Raises:
        UserError: no such file, not a state dict, or it does not fit.
    """
    state = libraries.renamed(network, read_state_dict(path, role))
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        shapes = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        first = shapes[0] if shapes else _one_line(error)
        raise UserError(f"{role}.weights {path} does not fit {role}.source: {first}") from error
    # BatchNorm's step counter is bookkeeping that old checkpoints lack.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        folded = any(key.endswith("running_mean") for key in missing) and any(
            key.endswith(".bias") for key in unexpected
        )
        why = ": its BatchNorm was folded into the convolutions, bring the weights from before"
        raise UserError(
            f"{role}.weights {path} does not fit {role}.source: "
            f"{len(missing)} keys missing{_first(missing)}, "
            f"{len(unexpected)} unexpected{_first(unexpected)}{why if folded else ''}"
        )
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(f"{role}.weights {path} holds NaN or infinite values{_first(broken)}")


def read_state_dict(path: Location, role: str) -> dict[str, Tensor]:
    """The named tensors of a checkpoint file, on the CPU."""
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
        raise UserError(f"{role}.weights {path} cannot be read: {_one_line(error)}") from error
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{role}.weights {path} is not a state dict (names to tensors)")
    return {str(key).removeprefix("module."): tensor for key, tensor in state.items()}


def weights_file(source: str, weights: str, role: str) -> Path:
    """The file that ``weights`` names: a path, or a library's name for what it publishes.

    ``pretrained`` stands for the weights that torchvision, timm or a Hugging Face repository
    publishes; torchvision also takes the names of its enum, as in ``IMAGENET1K_V2``.
    """
    if Path(weights).is_file():
        return Path(weights)
    return libraries.published_weights(source, weights, role) or Path(weights)


def digest_network(network: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def factory_file(source: str, role: str) -> Path | None:
    """The user's file that defines the factory, or None where a library does."""
    scheme, name = libraries.split(source)
    if scheme:
        return libraries.hub_file(name) if scheme == "hub" else None
    origin, _, _ = source.rpartition(":")
    if origin.endswith(".py"):
        return Path(origin)
    factory = _factory(source, role)
    try:
        file = inspect.getsourcefile(inspect.unwrap(factory))
    except TypeError:  # a partial, or another callable that has no source of its own
        file = sys.modules[origin].__file__
    return Path(file) if file else None


def factory_digest(source: str, role: str) -> str | None:
    """Of the code of :func:`factory_file` as this process runs it, or None where a library's."""
    scheme, name = libraries.split(source)
    if scheme == in_memory.SCHEME:
        return in_memory.code_digest(name, role)
    file = factory_file(source, role)
    if file is None:
        return None
    is_path = source.rpartition(":")[0].endswith(".py")  # executed anew each time
    return source_digest([file]) if is_path else _imported_digest(file)


@functools.cache
def _imported_digest(file: Path) -> str:
    """A module is imported once a process: an edit after that is not what a worker runs."""
    return source_digest([file])


def public_source(source: str) -> str:
    """``source`` without the folders of this machine that a path to a file would tell."""
    scheme, rest = libraries.split(source)
    origin, _, name = rest.rpartition(":")
    if origin.endswith(".py") or (scheme == "hub" and Path(origin).is_dir()):
        rest = f"{Path(origin).resolve().name}:{name}"
    elif scheme and Path(name).is_dir():  # `hf:FOLDER` and `timm:local-dir:FOLDER`
        rest = f"{origin}:{Path(name).resolve().name}".removeprefix(":")
    return f"{scheme}:{rest}".removeprefix(":")


def _factory(source: str, role: str, weights: str | None = None) -> Callable[..., Any]:
    origin, _, name = source.rpartition(":")
    if not origin or not name:
        raise UserError(f"{role}.source is {source!r}: write {FORMS}")
    if libraries.split(source)[0]:
        return libraries.builder(source, weights, role)
    module = _import_file(origin, role) if origin.endswith(".py") else _import(origin, role)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise UserError(f"{role}.source: {origin} has no function {name!r}")
    return factory  # type: ignore[no-any-return]


def _import(origin: str, role: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(origin)
    except Exception as error:
        raise UserError(
            f"{role}.source: module {origin!r} cannot be imported: {_one_line(error)}"
        ) from error


def _import_file(origin: str, role: str) -> Any:
    path = Path(origin)
    if not path.is_file():
        raise UserError(f"{role}.source: there is no file {origin}")
    name = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{role}.source: {origin} failed: {_one_line(error)}") from error
    return module


def _first(names: list[str]) -> str:
    return f" (first: {names[0]})" if names else ""


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
