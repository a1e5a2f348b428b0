"""Models that a library holds: how each is built, and where its published weights lie.

Published weights are read from the library's own cache where they are there, and fetched where
not. Only state dicts are ever read (:func:`pipeline.teachers.networks.read_state_dict`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import TryAgainError, UserError
from pipeline.teachers import in_memory

SCHEMES = ("torchvision", "timm", "hf", "hub", in_memory.SCHEME)
PRETRAINED = "pretrained"


def split(source: str) -> tuple[str, str]:
    """``timm:resnet18`` as ``("timm", "resnet18")``; ``("", source)`` where no library is named."""
    scheme, colon, rest = source.partition(":")
    return (scheme, rest) if colon and scheme in SCHEMES else ("", source)


def builder(source: str, weights: str | None, role: str) -> Callable[..., nn.Module]:
    """What builds the model that ``source`` names, with random weights (``hub``: the entry's own).

    Raises:
        UserError: the library is not installed, or it has no such model.
    """
    scheme, name = split(source)
    match scheme:
        case "torchvision":
            return _torchvision_builder(name, weights, role)
        case "timm":
            return _timm_builder(name, role)
        case "hf":
            return _transformers_builder(name, role)
        case in_memory.SCHEME:
            return in_memory.builder(name, role)
        case _:
            return _hub_builder(name, role)


def published_weights(source: str, weights: str, role: str) -> Path | None:
    """The file that a library's name for weights stands for; None where ``weights`` is no name.

    Raises:
        UserError: it is not in the library's cache and cannot be fetched.
    """
    scheme, name = split(source)
    if scheme == "torchvision":
        entry = torchvision_weights(name, weights, role)
        if entry is None or Path(entry.url).name == Path(weights).name:  # a file of that name
            return None
        return _fetched(entry.url, role)
    if weights != PRETRAINED:
        return None
    if scheme == "timm":
        with torch.device("meta"):
            model = _timm_builder(name, role)()
        reference = name.partition(":")[2] or model.pretrained_cfg.get("hf_hub_id")
        if not reference:
            raise UserError(f"{role}.weights: timm publishes no weights of {name!r}")
        return required_file(str(reference), "model.safetensors", role)
    if scheme == "hf":
        return required_file(name, "model.safetensors", role)
    raise UserError(
        f"{role}.weights is {PRETRAINED!r}, which {source} has no use for: name a file, "
        "or null for the weights that the factory gives it"
    )


def renamed(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the keys of ``network``: transformers publishes some under older names."""
    if type(network).__module__.partition(".")[0] != "transformers":
        return state
    if set(state) == set(network.state_dict()):
        return state
    model: Any = network
    logging = importlib.import_module("transformers.utils.logging")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    filled, found = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=dict(state),
        dtype=torch.float32,
        output_loading_info=True,
    )
    names: dict[str, Tensor] = filled.state_dict()
    return state if any(found.values()) else names


def hub_file(name: str) -> Path | None:
    """The ``hubconf.py`` of ``OWNER/REPO[:REF]:ENTRY`` or ``FOLDER:ENTRY``, if it is here."""
    repository = name.rpartition(":")[0]
    if Path(repository).is_dir():
        return Path(repository) / "hubconf.py"
    project, _, reference = repository.partition(":")
    folder = f"{project.replace('/', '_')}_{reference.replace('/', '_') or '*'}"
    return next(iter(sorted(Path(torch.hub.get_dir()).glob(f"{folder}/hubconf.py"))), None)


def _library(package: str, source: str, role: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{role}.source {source} needs the package {package}: "
            f"pip install -c constraints.txt -e '.[{package}]'"
        ) from error


def _torchvision_builder(name: str, weights: str | None, role: str) -> Callable[..., nn.Module]:
    models = _library("torchvision", f"torchvision:{name}", role).models
    if name not in models.list_models():
        raise UserError(f"{role}.source: torchvision has no model {name!r}")
    entry = torchvision_weights(name, weights, role) if weights else None

    def factory(**arguments: Any) -> nn.Module:
        if entry is not None and name in ("googlenet", "inception_v3"):
            arguments = {"transform_input": True, **arguments}  # as these weights were trained
        network: nn.Module = models.get_model(name, weights=None, **arguments)
        return network

    return factory


def torchvision_weights(name: str, weights: str | None, role: str) -> Any:
    """The entry of the model's weights enum that ``weights`` names, None where it is a file."""
    models = _library("torchvision", f"torchvision:{name}", role).models
    if name not in models.list_models():
        raise UserError(f"{role}.source: torchvision has no model {name!r}")
    entries = models.get_model_weights(name)
    short = (weights or "").rpartition(".")[2]
    if weights == PRETRAINED or short == "DEFAULT":
        return entries.DEFAULT
    if short in entries.__members__:
        return entries[short]
    if short.isupper() and not Path(str(weights)).exists():
        raise UserError(
            f"{role}.weights: torchvision's {name} has no weights {weights!r}, "
            f"only {', '.join(entries.__members__)}"
        )
    return next((e for e in entries if Path(e.url).name == Path(weights or "").name), None)


def _fetched(url: str, role: str) -> Path:
    """A file of torch.hub's cache, whose name ends in the start of its SHA-256."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = path.stem.rpartition("-")[2]
        try:
            torch.hub.download_url_to_file(url, str(path), digest or None, progress=False)
        except Exception as error:
            raise TryAgainError(
                f"{role}.weights: {path.name} is not in the cache of torch.hub "
                f"and cannot be fetched ({type(error).__name__})"
            ) from error
    return path


def _timm_builder(name: str, role: str) -> Callable[..., Any]:
    timm = _library("timm", f"timm:{name}", role)
    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        raise UserError(f"{role}.source: timm has no model {name!r}")

    def factory(**arguments: Any) -> nn.Module:
        network: nn.Module = timm.create_model(name, pretrained=False, **arguments)
        return network

    return factory


def _transformers_builder(name: str, role: str) -> Callable[..., nn.Module]:
    transformers = _library("transformers", f"hf:{name}", role)
    folder = required_file(name, "config.json", role).parent

    def factory(**arguments: Any) -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **arguments
        )
        network: nn.Module = transformers.AutoModelForImageClassification.from_config(
            config, trust_remote_code=False
        )
        network.register_forward_hook(_only_logits)
        return network

    return factory


def _only_logits(module: nn.Module, inputs: Any, output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits


def required_file(name: str, file: str, role: str) -> Path:
    path = hugging_face_file(name, file)
    if path is None:
        raise UserError(
            f"{role}: {file} of {name} is neither a local file nor in the Hugging Face cache, "
            "and cannot be fetched"
        )
    return path


def hugging_face_file(name: str, file: str, fetch: bool = True) -> Path | None:
    """A file of a local directory or of a Hugging Face repository, from its cache if it is there.

    None where the repository has no such file, or it cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name) / file if (Path(name) / file).is_file() else None
    if name.startswith(("/", ".")):
        return None
    hub = importlib.import_module("huggingface_hub")
    try:
        cached = hub.try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return Path(cached)
        return Path(hub.hf_hub_download(name, file)) if fetch else None
    except Exception:  # no such repository or file, no network, not allowed: it cannot be had
        return None


def _hub_builder(name: str, role: str) -> Callable[..., nn.Module]:
    repository, _, entry = name.rpartition(":")
    if not repository or not entry:
        raise UserError(f"{role}.source is 'hub:{name}': write hub:OWNER/REPO:ENTRY")
    local = Path(repository).is_dir()
    if not local and (repository.startswith(("/", ".")) or repository.count("/") != 1):
        raise UserError(f"{role}.source: there is no folder {repository} with a hubconf.py")

    def factory(**arguments: Any) -> nn.Module:
        network: nn.Module = torch.hub.load(
            repository,
            entry,
            source="local" if local else "github",
            trust_repo=True,  # its code runs because the user names it
            skip_validation=True,
            verbose=False,
            **arguments,
        )
        return network

    return factory
