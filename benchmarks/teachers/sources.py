"""Load, probe, invert for 2 steps and verify teachers of each source and shape.

    python -m benchmarks.teachers.sources OUT [ROW ...]

The script prints the table of docs/results/teachers.md. Weights are random, with the statistics
of random images: the table shows that an architecture works from end to end, and says nothing about
its images. For each row the script writes ``OUT/ROW.yaml`` and runs ``python -m pipeline probe``,
``synthesize`` and ``verify`` with it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import nn

from pipeline.cli import main as command
from pipeline.config.schema import Config
from pipeline.objective.bn_statistics import batchnorm_layers
from pipeline.params import load_params
from pipeline.teachers.networks import build_network

HUBCONF = """
dependencies = ["torchvision"]

def shuffle(classes):
    import torchvision

    return torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=classes)
"""


@dataclass(frozen=True)
class Row:
    """A teacher: the part of the parameter file that a user writes, and the input shape."""

    source: str
    shape: tuple[int, int, int]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    known: bool = False  # The source's metadata has mean and std.


ROWS: dict[str, Row] = {
    "resnet18": Row("torchvision:resnet18", (3, 224, 224), known=True),
    "mobilenet-v3": Row("torchvision:mobilenet_v3_small", (3, 128, 96), known=True),
    "vgg11": Row("torchvision:vgg11_bn", (3, 64, 64), {"num_classes": 2}, known=True),
    "densenet": Row("torchvision:densenet121", (3, 96, 96), {"num_classes": 100}, known=True),
    "swin": Row("torchvision:swin_t", (3, 224, 224), known=True),
    "grey-resnet": Row("timm:resnet10t", (1, 96, 96), {"in_chans": 1, "num_classes": 5}),
    "rgba-resnet": Row("timm:resnet10t", (4, 64, 64), {"in_chans": 4, "num_classes": 10}),
    "satellite": Row("timm:efficientnet_lite0", (13, 64, 64), {"in_chans": 13, "num_classes": 17}),
    "10000": Row("timm:resnet10t", (3, 64, 64), {"num_classes": 10_000}, known=True),
    "mobilenet-v4": Row("timm:mobilenetv4_conv_small", (3, 160, 160), known=True),
    "convnext": Row("timm:convnext_atto", (3, 64, 64), {"num_classes": 20}, known=True),
    "vit-384": Row("timm:vit_tiny_patch16_384", (3, 384, 384), known=True),
    "mixer": Row("timm:mixer_s32_224", (3, 224, 224), known=True),
    "hf-resnet": Row("hf:", (3, 64, 64), known=True),
    "hf-vit": Row("hf:", (3, 32, 32), known=True),
    "hf-convnext": Row("hf:", (1, 28, 28), known=True),
    "hub": Row("hub:", (3, 96, 96), {"classes": 30}),
    "module": Row("benchmarks.teachers.grey_networks:mobilenet", (1, 28, 28)),
    "module-vit": Row("benchmarks.teachers.grey_networks:vit", (1, 28, 28)),
    "file": Row("examples/cifar10.py:resnet", (3, 32, 32), {"blocks": 3}),
}


def prepared(name: str, row: Row, out: Path) -> dict[str, Any]:
    """Return the ``teacher`` section, and write its files below ``out``."""
    channels, height, width = row.shape
    section: dict[str, Any] = {"source": row.source, "arguments": dict(row.arguments)}
    shape: dict[str, Any] = {"channels": channels, "height": height, "width": width}
    if not row.known:
        shape |= {"mean": [0.45] * channels, "std": [0.25] * channels}
    section["input"] = shape
    if row.source == "hf:":
        return {"source": f"hf:{_hugging_face(name, row, out)}", "weights": "pretrained"}
    if row.source == "hub:":
        (out / name).mkdir(exist_ok=True)
        (out / name / "hubconf.py").write_text(HUBCONF)
        section["source"] = f"hub:{out / name}:shuffle"
    network = build_network(section["source"], row.arguments, "teacher")
    calibrate(network, row.shape)
    torch.save(network.state_dict(), out / f"{name}.pt")
    return {**section, "weights": str(out / f"{name}.pt")}


def calibrate(network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Give BatchNorm layers the statistics of random images, in place of training."""
    for layer in batchnorm_layers(network):
        layer.momentum = None  # type: ignore[assignment]
    network.train()
    with torch.no_grad():
        network(torch.randn(8, *shape, generator=torch.Generator().manual_seed(0)))
    network.eval()


def _hugging_face(name: str, row: Row, out: Path) -> Path:
    import transformers

    channels, height, width = row.shape
    labels = {index: f"kind {index}" for index in range(12)}
    common: dict[str, Any] = {"num_channels": channels, "id2label": labels}
    common["label2id"] = {text: index for index, text in labels.items()}
    small: dict[str, Any] = {"depths": [1, 1], "hidden_sizes": [16, 32]}
    config: Any
    model: Any
    if name == "hf-resnet":
        config = transformers.ResNetConfig(embedding_size=16, layer_type="basic", **small, **common)
        model = transformers.ResNetForImageClassification(config)
    elif name == "hf-vit":
        config = transformers.ViTConfig(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            image_size=height,
            patch_size=8,
            **common,
        )
        model = transformers.ViTForImageClassification(config)
    else:
        config = transformers.ConvNextConfig(num_stages=2, **small, **common)
        model = transformers.ConvNextForImageClassification(config)
    model.register_forward_hook(lambda module, inputs, output: output.logits)
    calibrate(model, row.shape)
    model.save_pretrained(out / name)
    processor: dict[str, Any] = {
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    }
    processor |= {"image_mean": [0.45] * channels, "image_std": [0.25] * channels}
    processor |= {"size": {"height": height, "width": width}}
    (out / name / "preprocessor_config.json").write_text(json.dumps(processor))
    return out / name


def run(name: str, row: Row, out: Path) -> str:
    """Return one line of the table."""
    teacher = prepared(name, row, out)
    params = {
        "teacher": teacher,
        "student": {"source": teacher["source"], "arguments": dict(row.arguments)},
        "synthesis": {
            "images": 4,
            "batch_size": 4,
            "iterations": 2,
            "precision": "float32",
            "compile": False,
        },
        "execution": {"device": "cpu", "workers": 1},
        "paths": {
            name_: str(out / f"{name}-{name_}") for name_ in ("dataset", "students", "reports")
        },
    }
    path = out / f"{name}.yaml"
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(params, file)
    started = time.monotonic()
    failed = [step for step in STEPS if _quietly([*step, "--params", str(path)])]
    seconds = time.monotonic() - started
    return _line(name, row, load_params(path), failed, seconds)


STEPS = (["probe", "--seconds", "5"], ["synthesize"], ["verify", "--agreement", "0"])


def _quietly(arguments: list[str]) -> int:
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as log,
    ):
        code = command(arguments)
    if code:
        sys.stderr.write(log.getvalue())
    return code


def _line(name: str, row: Row, config: Config, failed: list[list[str]], seconds: float) -> str:
    source = config.teacher.source.replace(str(Path(config.paths.dataset).parent), "OUT")
    arguments = ", ".join(f"{key} {value}" for key, value in row.arguments.items())
    shape = config.teacher.input
    network = build_network(config.teacher.source, row.arguments, "teacher")
    outcome = f"failed: {failed[0][0]}" if failed else "verified"
    return (
        f"| {name} | `{source}` {arguments} | {shape.channels} x {shape.height} x {shape.width} | "
        f"{config.teacher.classes} | {len(batchnorm_layers(network))} | "
        f"{config.preset} | {outcome}, {seconds:.0f} s |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", nargs="*", help="rows to run; all by default")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print_line("| row | source | input | classes | BatchNorm | objective | outcome |")
    print_line("|---|---|---|---|---|---|---|")
    lines = []
    for name in options.rows or ROWS:
        torch.manual_seed(0)
        lines.append(run(name, ROWS[name], options.out.resolve()))
        print_line(lines[-1])
    return int(any("failed" in line for line in lines))


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
