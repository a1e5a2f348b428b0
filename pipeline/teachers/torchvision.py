"""The source ``torchvision:NAME``: classifiers of torchvision and their published weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import TryAgainError, UserError
from pipeline.teachers.source import PRETRAINED, Description, Source, import_package


class Torchvision(Source):
    """``weights`` may be ``pretrained`` or a name of the model's enum, as ``IMAGENET1K_V2``."""

    form = "torchvision:NAME"
    package = "torchvision"
    classes_argument = "num_classes"
    random_without_weights = True

    def build(self, name: str, arguments: Mapping[str, Any], weights: str | None, role: str) -> Any:
        models = _models(name, role)
        entry = _entry(name, weights, role) if weights else None
        if entry is not None and name in ("googlenet", "inception_v3"):
            arguments = {"transform_input": True, **arguments}  # the weights were trained this way
        return models.get_model(name, weights=None, **arguments)

    def weights(self, name: str, weights: str, role: str) -> Path | None:
        entry = _entry(name, weights, role)
        if entry is None or Path(entry.url).name == Path(weights).name:  # the path of a file
            return None
        return _fetched(entry.url, role)

    def describe(self, name: str, arguments: Mapping[str, Any], weights: str | None) -> Description:
        """The user's own weights file gets the input of the default weights, but no class names."""
        entry = _entry(name, weights, "teacher")
        known = entry or _entry(name, PRETRAINED, "teacher")
        usual = known.transforms()
        if not hasattr(usual, "crop_size"):  # models of detection and segmentation
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


def _models(name: str, role: str) -> Any:
    models = import_package("torchvision", f"torchvision:{name}", role).models
    if name not in models.list_models():
        raise UserError(f"{role}.source: torchvision has no model {name!r}")
    return models


def _entry(name: str, weights: str | None, role: str) -> Any:
    """The entry of the model's weights enum that ``weights`` names; None for the user's file."""
    entries = _models(name, role).get_model_weights(name)
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
    """A file in the cache of torch.hub. The file's name ends in the start of its SHA-256."""
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
