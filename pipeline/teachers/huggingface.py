"""The source ``hf:ORG/NAME``: image classifiers of transformers from a Hugging Face repository."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.teachers.checkpoints import INDEX, part_names
from pipeline.teachers.places import shown
from pipeline.teachers.source import PRETRAINED, Description, Source, import_package

# Files of weights, in the order of preference: whole, or in parts that an index lists.
WEIGHTS = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)


class HuggingFace(Source):
    """``ORG/NAME`` is a repository, or a local folder that ``save_pretrained`` wrote.

    Files are read from the local cache, and fetched where the cache lacks them. Code of a
    repository is never run.
    """

    form = "hf:ORG/NAME"
    package = "transformers"
    random_without_weights = True

    def build(self, name: str, arguments: Mapping[str, Any], weights: str | None, role: str) -> Any:
        transformers = import_package("transformers", f"hf:{name}", role)
        folder = required_file(name, "config.json", role).parent
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **arguments
        )
        network = transformers.AutoModelForImageClassification.from_config(
            config, trust_remote_code=False
        )
        network.register_forward_hook(_only_logits)
        return network

    def weights(self, name: str, weights: str, role: str) -> Path | None:
        if weights != PRETRAINED:
            return None
        return published_weights(name, role)

    def describe(self, name: str, arguments: Mapping[str, Any], weights: str | None) -> Description:
        config = {**_read_json(required_file(name, "config.json", "teacher")), **arguments}
        path = repository_file(name, "preprocessor_config.json")
        usual = _read_json(path) if path else {}
        channels = config.get("num_channels", 3)
        crop = usual.get("crop_size") if usual.get("do_center_crop") else None
        height, width = _sides(arguments.get("image_size") or crop or usual.get("size")) or (
            _sides(config.get("image_size")) or (None, None)
        )
        mean, std = _mean_and_std(usual, channels) if usual else (None, None)
        resample = usual.get("resample")
        return Description(
            channels=channels,
            height=height,
            width=width,
            mean=mean,
            std=std,
            interpolation=None if resample is None else Image.Resampling(resample).name.lower(),
            class_names=_class_names(config, "num_labels" not in arguments and weights is not None),
            license=_card_license(name),
        )

    def rename(self, network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """transformers publishes some models under older names, and knows how to rename them."""
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


def required_file(name: str, file: str, role: str) -> Path:
    """:func:`repository_file`, where the file must exist.

    Raises:
        UserError: The file is neither local nor cached, and cannot be fetched.
    """
    path = repository_file(name, file)
    if path is None and Path(name).is_dir():
        raise UserError(f"{role}: the folder {name} has no {file}, which belongs there")
    if path is None:
        raise UserError(
            f"{role}: {file} of {name} is neither a local file nor in the Hugging Face cache, "
            "and cannot be fetched"
        )
    return path


def published_weights(name: str, role: str) -> Path:
    """The file of weights of a folder or repository, or the index of its parts.

    Args:
        name: The folder, or ``ORG/NAME``.
        role: The section that error messages name.

    Raises:
        UserError: There is none of ``WEIGHTS``, or a part of the index is missing.
    """
    for file in WEIGHTS:
        path = repository_file(name, file)
        if path is None:
            continue
        if file.endswith(INDEX):
            try:
                parts = part_names(path.read_bytes())
            except ValueError as error:
                raise UserError(
                    f"{role}.weights: {path} is not the index of weights in parts: {error}"
                ) from error
            for part in parts:
                required_file(name, part, role)
        return path
    wanted = " or ".join(WEIGHTS)
    if Path(name).is_dir():
        files = shown(tuple(sorted(path.name for path in Path(name).iterdir()))) or "nothing"
        raise UserError(
            f"{role}.weights: the folder {name} has no {wanted}. It holds {files}: name a file "
            "with PyTorch weights, or save the model again with save_pretrained"
        )
    raise UserError(
        f"{role}: {wanted} of {name} is neither a local file nor in the Hugging Face cache, and "
        "cannot be fetched"
    )


def repository_file(name: str, file: str, fetch: bool = True) -> Path | None:
    """A file of a local folder or of a Hugging Face repository, from the cache if possible.

    Args:
        name: The folder, or ``ORG/NAME``.
        file: The file's path in it.
        fetch: Whether to download a file that is not cached.

    Returns:
        The local path. None where the repository has no such file or cannot be reached.
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
    except Exception:  # no such repository or file, no network, no permission
        return None


def _only_logits(module: nn.Module, inputs: Any, output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits


def _class_names(config: Mapping[str, Any], published: bool) -> tuple[str, ...] | None:
    """The labels of the published weights; None for other weights and for placeholder labels."""
    labels = {int(key): str(value) for key, value in (config.get("id2label") or {}).items()}
    names = tuple(labels[key] for key in sorted(labels)) if published else ()
    return names if names and not names[0].startswith("LABEL_") else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"teacher.source: {path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"teacher.source: {path} must hold a JSON object")
    return values


def _sides(size: Any) -> tuple[int, int] | None:
    if isinstance(size, dict):
        if "height" in size:
            return int(size["height"]), int(size["width"])
        size = size.get("shortest_edge")
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[1])
    return None if size is None else (int(size), int(size))


def _mean_and_std(
    usual: Mapping[str, Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Write the processor's ``(pixel * factor - offset - mean) / std`` as one mean and one std."""
    factor = usual.get("rescale_factor", 1 / 255) if usual.get("do_rescale", True) else 1.0
    offset = 1.0 if usual.get("rescale_offset") else 0.0
    mean, std = [0.0] * channels, [1.0] * channels
    if usual.get("do_normalize", "image_mean" in usual):
        mean, std = usual.get("image_mean", mean), usual.get("image_std", std)
    scale = 255 * factor
    return (
        tuple(float(f"{(value + offset) / scale:.9g}") for value in mean),
        tuple(float(f"{value / scale:.9g}") for value in std),
    )


def _card_license(name: str) -> str | None:
    path = repository_file(name, "README.md", fetch=False)
    text = path.read_text(encoding="utf-8") if path else ""
    if not text.startswith("---"):
        return None
    try:
        head = YAML(typ="safe", pure=True).load(text.split("---")[1])
    except YAMLError:  # a card is free text: without a readable header it states no license
        return None
    return str(head["license"]) if isinstance(head, dict) and "license" in head else None
