"""Checks that the fast engine computes the same loss and gradient as the slow one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.inversion.engine import Engine
from pipeline.objective.presets import PRESETS
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher

OBJECTIVE = PRESETS["normalised"]
STEPS = 3
LOSS, FLOAT32 = 2e-2, 1e-3
# Bounds relative to the gradient's error in eager bfloat16, and absolute ones.
TIMES, FLOOR, MOST = 1.5, 2e-2, 0.5


def random_teacher(
    network: nn.Module,
    shape: tuple[int, int, int],
    classes: int,
    batch: int,
    device: torch.device,
) -> Teacher:
    """Return a teacher with random weights and the BatchNorm statistics of random images.

    Residual branches are scaled down, as training does. With full random branches the gradient is
    chaotic, and every engine would be inexact in bfloat16.
    """
    for module in network.modules():
        last = getattr(module, "bn3", getattr(module, "bn2", None))
        if hasattr(module, "conv1") and isinstance(last, nn.BatchNorm2d):
            nn.init.constant_(last.weight, 0.1)
    one = torch.ones(1, 3, 1, 1)
    preprocessing = Preprocessing(one * 0.45, one * 0.25).to(device)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, *shape), generator=generator, dtype=torch.uint8)
    network.to(device)
    _restate(network, preprocessing.normalise(pixels.to(device)))
    return Teacher(network.requires_grad_(False), preprocessing, shape, classes, "")


def check(
    teacher: Teacher,
    labels: Tensor,
    default: Engine,
    plain: Engine,
    strict: bool | None,
) -> list[dict[str, Any]]:
    """Compute the errors of each engine, and whether they are small enough; one row each.

    ``loss`` and ``gradient`` are errors relative to eager float32, the largest of a few steps.
    ``strict`` includes the compiled float32 engine, and asks whether it is compiled. The first two
    engines must have been used before, so that they compute here what they compute in a loop.
    """
    engines = {"default": default, "no CUDA graphs": plain}
    if strict is not None:
        engines["compiled float32"] = Engine(teacher, OBJECTIVE, "float32", strict)
    engines["eager bfloat16"] = Engine(teacher, OBJECTIVE, "bfloat16")
    errors = _follow(teacher, labels.to(teacher.device), engines)
    own = errors["eager bfloat16"]["gradient"]
    bfloat16 = {"loss": LOSS, "gradient": min(TIMES * own + FLOOR, MOST)}
    bounds = {
        "default": bfloat16,
        "no CUDA graphs": bfloat16,
        "compiled float32": {"loss": FLOAT32, "gradient": FLOAT32},
    }
    rows = []
    for name, found in errors.items():
        bound = bounds.get(name)  # Eager bfloat16, the reference, has no bound.
        right = bound is None or all(found[key] <= bound[key] for key in bound)
        rows.append({"engine": name, **found, "bounds": bound, "right": right})
    return rows


def _follow(
    teacher: Teacher, labels: Tensor, engines: dict[str, Engine]
) -> dict[str, dict[str, float]]:
    """Compute the largest errors of each engine along a few steps of eager float32."""
    reference = Engine(teacher, OBJECTIVE, "float32")
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(len(labels), *teacher.shape, generator=generator).to(teacher.device)
    worst: dict[str, dict[str, float]] = {name: {"loss": 0.0, "gradient": 0.0} for name in engines}
    for _ in range(STEPS):
        with float32_convolutions():
            loss, gradient = _differentiate(reference, images, labels)
        for name, engine in engines.items():
            with float32_convolutions(name == "compiled float32"):
                its_loss, its_gradient = _differentiate(engine, images, labels)
            seen = {
                "loss": float((its_loss - loss).abs() / loss.abs()),
                "gradient": float((its_gradient - gradient).norm() / gradient.norm()),
            }
            for key, value in seen.items():  # Python's max could drop a NaN.
                worst[name][key] = value if value != value else max(value, worst[name][key])
        images = images - (0.1 * gradient / gradient.square().mean().sqrt()).float()
    return worst


def _differentiate(engine: Engine, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with engine:
        factors = torch.ones(len(images), 2, device=images.device)
        gradient, means = engine.step(images, labels, factors)
    return means[0].double(), gradient.double()


def counted_flops(teacher: Teacher) -> float:
    """Count the FLOPs of an image, forward and backward to its pixels, in large operators."""
    images = torch.zeros(2, *teacher.shape, device=teacher.device, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        teacher.network(images).sum().backward()  # The teacher's weights are frozen.
    return float(counter.get_total_flops() / len(images))


@contextlib.contextmanager
def float32_convolutions(strict: bool = True) -> Iterator[None]:
    """Turn off TF32, PyTorch's default for convolutions, if ``strict``."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and not strict
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@torch.no_grad()
def _restate(network: nn.Module, images: Tensor) -> None:
    """Set the running statistics of each BatchNorm layer to those of ``images``."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    network.train()(images)
    network.eval()
