"""The source ``timm:NAME``: classifiers of timm and their published weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.teachers.huggingface import published_weights
from pipeline.teachers.source import PRETRAINED, Description, Source, import_package


class Timm(Source):
    """``NAME`` is a model of timm, or ``local-dir:FOLDER`` with a model saved by timm."""

    form = "timm:NAME"
    package = "timm"
    classes_argument = "num_classes"
    random_without_weights = True

    def build(self, name: str, arguments: Mapping[str, Any], weights: str | None, role: str) -> Any:
        timm = import_package("timm", f"timm:{name}", role)
        if ":" not in name and not timm.is_model(name.partition(".")[0]):
            raise UserError(f"{role}.source: timm has no model {name!r}")
        return timm.create_model(name, pretrained=False, **arguments)

    def weights(self, name: str, weights: str, role: str) -> Path | None:
        if weights != PRETRAINED:
            return None
        with torch.device("meta"):
            model = self.build(name, {}, None, role)
        reference = name.partition(":")[2] or model.pretrained_cfg.get("hf_hub_id")
        if not reference:
            raise UserError(f"{role}.weights: timm publishes no weights of {name!r}")
        return published_weights(str(reference), role)

    def describe(self, name: str, arguments: Mapping[str, Any], weights: str | None) -> Description:
        with torch.device("meta"):
            model = self.build(name, arguments, None, "teacher")
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
