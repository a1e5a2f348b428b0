"""ONNX files of small networks, as exporters and other programs write them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper
from torch import nn
from torch.onnx import TrainingMode

from examples.cifar10 import resnet
from pipeline.teachers.networks import build_network

SHAPE = (3, 16, 16)


def trained_like(network: nn.Module, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    """The network in eval mode, with the statistics of random images."""
    generator = torch.Generator().manual_seed(0)
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(16, *shape, generator=generator))
    return network.eval()


def small_resnet() -> nn.Module:
    """A ResNet-8 whose shortcuts slice and pad, for images of any size."""
    torch.manual_seed(0)
    return trained_like(resnet(blocks=1, classes=5))


def export(
    network: nn.Module,
    path: Path,
    folded: bool = False,
    batch: int | None = None,
    shape: tuple[int, int, int] = SHAPE,
    opset: int = 17,
) -> Path:
    """Export a network with its BatchNorm layers, or with them folded into the convolutions.

    Args:
        network: The network.
        path: The file to write.
        folded: Whether to fold.
        batch: The batch that the file fixes; None: any.
        shape: Channels, height and width.
        opset: The version of the operators.
    """
    options: dict[str, Any] = {} if batch else {"dynamic_axes": {"images": {0: "batch"}}}
    if not folded:
        options |= {"training": TrainingMode.PRESERVE, "do_constant_folding": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(batch or 1, *shape),),
            str(path),
            dynamo=False,
            input_names=["images"],
            output_names=["logits"],
            opset_version=opset,
            **options,
        )
    return path


def edited(path: Path, edit: Callable[[Any], None], name: str = "edited.onnx") -> Path:
    """A copy of a file after a change of its model."""
    model = onnx.load(str(path))
    edit(model)
    other = path.with_name(name)
    other.write_bytes(model.SerializeToString())
    return other


def channels_last(model: Any) -> None:
    """Let a model take [N, H, W, C], as one converted from TensorFlow."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    channels, height, width = (dim.dim_value for dim in dims[1:])
    for dim, side in zip(dims[1:], (height, width, channels), strict=True):
        dim.dim_value = side
    rename_input(model, "planes")
    first = helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2])
    model.graph.node.insert(0, first)


def rename_input(model: Any, name: str) -> None:
    """Let all nodes read ``name`` instead of the input."""
    for node in model.graph.node:
        for at, value in enumerate(node.input):
            if value == "images":
                node.input[at] = name


def append(kind: str, **attributes: Any) -> Callable[[Any], None]:
    """Append an operator to the output of a model."""

    def edit(model: Any) -> None:
        model.graph.node.append(helper.make_node(kind, ["logits"], ["last"], **attributes))
        model.graph.output[0].name = "last"

    return edit


def loaded(path: Path, **arguments: Any) -> nn.Module:
    """The teacher of a file, in eval mode."""
    return build_network(f"onnx:{path}", arguments, "teacher").eval()
