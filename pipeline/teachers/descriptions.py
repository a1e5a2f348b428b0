"""What a source itself says of its model: input, normalisation, class names, licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import UserError
from pipeline.teachers.libraries import (
    PRETRAINED,
    builder,
    hugging_face_file,
    required_file,
    split,
    torchvision_weights,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What a source says of its model; None where it does not say.

    ``mean`` and ``std`` are those of ``(pixel / 255 - mean) / std``.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    class_names: tuple[str, ...] | None = None
    license: str | None = None


def describe_source(source: str, arguments: Mapping[str, Any], weights: str | None) -> Description:
    """What the library's metadata says of the model and of these weights of it."""
    scheme, name = split(source)
    if scheme == "torchvision":
        return _describe_torchvision(name, weights)
    if scheme == "timm":
        return _describe_timm(name, arguments)
    if scheme == "hf":
        return _describe_transformers(name, arguments, weights)
    return Description()


def _describe_torchvision(name: str, weights: str | None) -> Description:
    """Of a file that is not torchvision's own: the input of the default weights, no classes."""
    entry = torchvision_weights(name, weights, "teacher")
    known = entry or torchvision_weights(name, PRETRAINED, "teacher")
    usual = known.transforms()
    if not hasattr(usual, "crop_size"):  # detection and segmentation
        return Description()
    height, width = (list(usual.crop_size) * 2)[:2]
    return Description(
        channels=3,
        height=height,
        width=width,
        mean=tuple(usual.mean),
        std=tuple(usual.std),
        interpolation=usual.interpolation.value,
        class_names=tuple(entry.meta["categories"]) if entry is not None else None,
        license=entry.meta.get("license") if entry is not None else None,
    )


def _describe_timm(name: str, arguments: Mapping[str, Any]) -> Description:
    with torch.device("meta"):
        model: Any = builder(f"timm:{name}", None, "teacher")(**arguments)
    known = model.pretrained_cfg
    channels = arguments.get("in_chans", known["input_size"][0])
    usual = channels == len(known["mean"])
    size = arguments.get("img_size", known["input_size"][1:])
    height, width = (size, size) if isinstance(size, int) else size
    names = None
    if model.num_classes == known.get("num_classes"):
        names = known.get("label_names") or _imagenet_names(known, model.num_classes)
    return Description(
        channels=channels,
        height=height,
        width=width,
        mean=tuple(known["mean"]) if usual else None,
        std=tuple(known["std"]) if usual else None,
        interpolation=known.get("interpolation"),
        class_names=tuple(names) if names else None,
        license=known.get("license"),
    )


def _imagenet_names(known: Mapping[str, Any], classes: int) -> tuple[str, ...] | None:
    from timm.data.imagenet_info import ImageNetInfo

    if classes != 1000 or "in1k" not in f"{known.get('tag') or 'in1k'}":
        return None
    information = ImageNetInfo("imagenet-1k")
    return tuple(information.index_to_description(label) for label in range(classes))


def _describe_transformers(
    name: str, arguments: Mapping[str, Any], weights: str | None
) -> Description:
    config = {**_read_json(required_file(name, "config.json", "teacher")), **arguments}
    path = hugging_face_file(name, "preprocessor_config.json")
    usual = _read_json(path) if path else {}
    channels = config.get("num_channels", 3)
    crop = usual.get("crop_size") if usual.get("do_center_crop") else None
    height, width = _sides(arguments.get("image_size") or crop or usual.get("size")) or (
        _sides(config.get("image_size")) or (None, None)
    )
    mean, std = _scaled(usual, channels) if usual else (None, None)
    labels = {int(key): str(value) for key, value in (config.get("id2label") or {}).items()}
    own = "num_labels" not in arguments and weights is not None
    names = tuple(labels[key] for key in sorted(labels)) if own else ()
    resample = usual.get("resample")
    return Description(
        channels=channels,
        height=height,
        width=width,
        mean=mean,
        std=std,
        interpolation=None if resample is None else Image.Resampling(resample).name.lower(),
        class_names=names if names and not names[0].startswith("LABEL_") else None,
        license=_card_license(name),
    )


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


def _scaled(usual: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The processor's steps, ``(pixel * factor - offset - mean) / std``, as one mean and std."""
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
    path = hugging_face_file(name, "README.md", fetch=False)
    text = path.read_text(encoding="utf-8") if path else ""
    if not text.startswith("---"):
        return None
    try:
        head = YAML(typ="safe", pure=True).load(text.split("---")[1])
    except YAMLError:  # a model card is for people: what it does not say plainly is not said
        return None
    return str(head["license"]) if isinstance(head, dict) and "license" in head else None
