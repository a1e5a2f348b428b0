"""The source ``onnx:FILE``: a trained classifier in an ONNX file, network and weights together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.errors import UserError
from pipeline.teachers.onnx_file import read_onnx
from pipeline.teachers.onnx_graph import graph_input, is_folded, output_classes, scaling
from pipeline.teachers.onnx_network import OnnxNetwork, convert
from pipeline.teachers.onnx_rewrite import (
    fix_shapes,
    lower_opset,
    prune,
    simplify,
    take_softmax_off,
)
from pipeline.teachers.origin import Origin
from pipeline.teachers.source import Description, Source, import_package

_FOLDED = (
    "the file has no BatchNorm layer. If the network had some, the export folded them into the "
    "convolutions: export it again with torch.onnx.export(..., dynamo=False, "
    "training=TrainingMode.PRESERVE, do_constant_folding=False), or name the original network and "
    "its weights. Without BatchNorm, synthesis.objective.preset: auto takes the objective without "
    "it, and images teach a student less"
)


class Onnx(Source):
    """A file of the user's own. ``arguments`` may give layout, height and width of its images.

    The file holds the weights, so ``teacher.weights`` is null. A student needs new weights.
    """

    form = "onnx:FILE"
    package = "onnx2torch"
    student = "torchvision:resnet18"

    def build(self, name: str, arguments: Mapping[str, Any], weights: str | None, role: str) -> Any:
        place = f"{role}.source: {name}"
        if role == "student":
            raise UserError(
                f"student.source onnx:{name} is a trained network, and a student starts from new "
                "weights: name a factory or a library's model, as in torchvision:resnet18"
            )
        if weights is not None:
            raise UserError(
                f"{role}.weights is {weights}, but the ONNX file of {role}.source holds the "
                f"weights: set {role}.weights to null"
            )
        _import_packages(name, role)
        file = read_onnx(Path(name), role)
        model, notes = file.model, []
        simplify(model, place)
        facts = graph_input(model.graph, arguments, place)
        if softmax := take_softmax_off(model.graph, place):
            notes.append(f"the final {softmax} is taken off, since logits are needed")
        if facts.channels_last:
            notes.append("it takes images as [N, H, W, C], so each batch is transposed first")
        prune(model.graph)
        folded = is_folded(model.graph)
        sized = fix_shapes(model, facts)
        lower_opset(sized, place)
        body = convert(sized, facts, place)
        warnings = (_FOLDED,) if folded else ()
        return OnnxNetwork(body, facts.channels_last, Origin(file.files, tuple(notes), warnings))

    def describe(self, name: str, arguments: Mapping[str, Any], weights: str | None) -> Description:
        place = f"teacher.source: {name}"
        _import_packages(name, "teacher")
        model = read_onnx(Path(name), "teacher").model
        simplify(model, place)
        facts = graph_input(model.graph, arguments, place)
        known = scaling(model.graph, facts)
        return Description(
            channels=facts.channels,
            height=facts.height,
            width=facts.width,
            mean=None if known is None else (known[0],) * facts.channels,
            std=None if known is None else (known[1],) * facts.channels,
            classes=output_classes(model.graph),
        )

    def origin(self, network: nn.Module) -> Origin | None:
        return network.origin if isinstance(network, OnnxNetwork) else None

    def model_file(self, name: str) -> Path | None:
        return Path(name)

    def public(self, name: str) -> str:
        return Path(name).name


def _import_packages(name: str, role: str) -> None:
    for package in ("onnx", "onnx2torch"):
        import_package(package, f"onnx:{name}", role, "onnx")
