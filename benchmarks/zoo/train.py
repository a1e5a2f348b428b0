"""Train the members of the zoo that are missing, the development half and its judges first.

    python -m benchmarks.zoo.train DATA_DIR OUT_DIR [NAME ...]

``DATA_DIR`` holds ``cifar10/*.tar`` and ``fashion/*.gz``. ``OUT_DIR`` gets ``NAME.safetensors`` and
``NAME.json`` of each member, and its real test images in ``tests``. A second call continues.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from benchmarks.teachers import cifar10
from benchmarks.zoo.blocks import Rounded
from benchmarks.zoo.data import TEST, TRAIN, read
from benchmarks.zoo.members import DEVELOPMENT, MEMBERS, Member, Recipe, halves, judge_of
from pipeline.dataset.tar import Sample, write_tar
from pipeline.device.precision import has_bfloat16
from pipeline.device.threads import use_threads
from pipeline.exit_codes import report_errors
from pipeline.storage import digest_json, replacing, write_bytes, write_json
from pipeline.teachers.networks import build_network
from pipeline.teachers.preprocessing import Preprocessing

BATCH = 128
RISE = 0.2  # Share of the steps in which the rate rises.
log = logging.getLogger("zoo")

Images = tuple[Tensor, Tensor]
"""Pixels, uint8 ``[N, C, H, W]``, and labels, int64 ``[N]``."""


def weights(out: Path, name: str) -> Path:
    """The weights of a member."""
    return out / f"{name}.safetensors"


def test_tar(out: Path, data: str) -> Path:
    """The real test images of a data set."""
    return out / "tests" / f"{data}.tar"


def ordered() -> list[str]:
    """All members: the development half, the judges of its members, and the others."""
    first = [name for name, half in halves().items() if half == DEVELOPMENT]
    return list(dict.fromkeys([*first, *map(judge_of, first), *MEMBERS]))


def make(folder: Path, out: Path, name: str) -> None:
    """Train a member, and write its files."""
    member = MEMBERS[name]
    test = read(folder, member.on, TEST)
    write_test(test_tar(out, member.on), test)
    torch.manual_seed(int(digest_json(name)[:8], 16))
    real = read(folder, member.on, TRAIN, member.recipe.images)
    started = time.process_time()
    network = build_network(member.source, member.arguments, "teacher")
    if member.recipe.start is not None:
        _take_body(network, _trained_on(folder, member, member.recipe.start))
    train(network, preprocessing(member), real, member.recipe)
    seconds = time.process_time() - started
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    some = (real[0][:2000], real[1][:2000])
    facts: dict[str, Any] = {
        "name": name,
        "half": halves()[name],
        "data": member.on,
        "family": member.family,
        "arguments": member.arguments,
        "input": member.input,
        "recipe": asdict(member.recipe),
        "parameters": sum(value.numel() for value in network.parameters()),
        "accuracy": cifar10.accuracy(network, preprocessing(member), test),
        "training_accuracy": cifar10.accuracy(network, preprocessing(member), some),
        "cpu_seconds": round(seconds, 1),
    }
    write_bytes(weights(out, name), save(state))
    write_json(out / f"{name}.json", facts)
    log.info("%s: %.2f %%, %.0f s", name, 100 * facts["accuracy"], seconds)


def train(network: nn.Module, units: Preprocessing, real: Images, recipe: Recipe) -> None:
    """Train ``network`` on real images, and leave it in eval mode."""
    network.to(memory_format=torch.channels_last)
    optimizer = _optimizer(network, recipe)
    generator = torch.Generator().manual_seed(0)
    bfloat16 = _fast_in_bfloat16(network)
    each = max(1, len(real[0]) // BATCH)
    steps = max(1, round(recipe.epochs * each))
    schedule = cifar10.Recipe(rate=recipe.rate, rise=RISE)
    _train_mode(network, frozen=recipe.start is not None)
    for step in range(steps):
        if step % each == 0:
            order = torch.randperm(len(real[0]), generator=generator).split(BATCH)
        index = order[step % each]
        for group in optimizer.param_groups:
            group["lr"] = cifar10.rate(schedule, (step + 1) / steps)
        batch = units.normalise(_augmented(real[0][index], recipe, generator))
        targets = F.one_hot(real[1][index], int(real[1].max()) + 1).float()
        if recipe.mixup:
            part = torch.rand((), generator=generator)
            batch = part * batch + (1 - part) * batch.flip(0)
            targets = part * targets + (1 - part) * targets.flip(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = network(batch.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    network.eval()


def preprocessing(member: Member) -> Preprocessing:
    """What turns pixels into the input of a member."""
    mean, std = (torch.tensor(member.input[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    return Preprocessing(mean, std)


def write_test(path: Path, test: Images) -> None:
    """Write the test images as a tar, unless it exists."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        write_tar(
            file,
            (
                Sample(f"{index:09d}", pixels.numpy(), int(label), {"cls": int(label)})
                for index, (pixels, label) in enumerate(zip(*test, strict=True))
            ),
        )


def _trained_on(folder: Path, member: Member, data: str) -> nn.Module:
    """A network like that of ``member``, trained on another data set."""
    real = read(folder, data, TRAIN)
    arguments = {**member.arguments, "classes": int(real[1].max()) + 1}
    network = build_network(member.source, arguments, "teacher")
    train(network, preprocessing(member), real, Recipe(epochs=member.recipe.epochs))
    return network


def _take_body(network: nn.Module, trained: nn.Module) -> None:
    """Copy all weights except those of the last layer, whose shape differs."""
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    last = list(shapes)[-2:]
    body = {key: value for key, value in trained.state_dict().items() if key not in last}
    network.load_state_dict(body, strict=False)


def _train_mode(network: nn.Module, frozen: bool) -> None:
    network.train()
    for module in network.modules():
        if frozen and isinstance(module, nn.BatchNorm2d):
            module.eval()


def _fast_in_bfloat16(network: nn.Module) -> bool:
    """Depthwise convolutions, GroupNorm and rounded weights are slower in bfloat16 on a CPU."""
    slow = any(
        getattr(module, "groups", 1) > 1 or isinstance(module, Rounded | nn.GroupNorm)
        for module in network.modules()
    )
    return not slow and has_bfloat16(torch.device("cpu"))


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": recipe.rate, "weight_decay": recipe.decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), momentum=0.9, nesterov=True, **common)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(network.parameters(), **common)


def _augmented(pixels: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Return changed pixels, float in 0 to 255."""
    if recipe.augmentation == "none":
        return pixels.float()
    heavy, side = recipe.augmentation == "heavy", pixels.shape[-1]
    how = cifar10.Recipe(shift=side // 10, hole=side // 3 if heavy else 0)
    moved = cifar10.augmented(pixels, how, generator).float()
    if heavy:
        contrast, brightness = torch.rand(
            (2, len(moved), moved.shape[1], 1, 1), generator=generator
        )
        moved = (moved - 120) * (0.6 + 0.8 * contrast) + 120 + 60 * (brightness - 0.5)
    return moved.clamp(0, 255)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with report_errors() as outcome:
        options = parser.parse_args(arguments)
        options.out.mkdir(parents=True, exist_ok=True)
        use_threads(1)
        for name in options.names or ordered():
            if not (options.out / f"{name}.json").is_file():
                make(options.data, options.out, name)
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
