"""Whether the fast engine computes what the slow one does, on one and the same way of images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.inversion.engine import Engine
from pipeline.objective.presets import PRESETS
from pipeline.teachers.teacher import Preprocessing, Teacher

OBJECTIVE = PRESETS["normalised"]
STEPS = 3
LOSS, FLOAT32 = 2e-2, 1e-3
# Of the gradient's error in eager bfloat16, which is the format's own; and whatever that is.
TIMES, FLOOR, MOST = 1.5, 2e-2, 0.5


def random_teacher(
    network: nn.Module,
    shape: tuple[int, int, int],
    classes: int,
    batch: int,
    device: torch.device,
) -> Teacher:
    """A network of random weights, its BatchNorm statistics those of random images.

    Residual branches are made small, as after training: with random ones of full size the gradient
    is chaotic, and in bfloat16 any engine's would be far off.
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
    """The errors of each engine and whether they are small enough, one row an engine.

    ``loss`` and ``gradient`` are relative to eager float32, the largest of a few steps. ``strict``
    asks for the float32 engine as well, and says whether it is compiled. The first two are warm:
    what they compute here is what they compute in a loop.
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
        bound = bounds.get(name)  # none for eager bfloat16, the yardstick
        right = bound is None or all(found[key] <= bound[key] for key in bound)
        rows.append({"engine": name, **found, "bounds": bound, "right": right})
    return rows


def _follow(
    teacher: Teacher, labels: Tensor, engines: dict[str, Engine]
) -> dict[str, dict[str, float]]:
    """The worst errors of each engine where eager float32 leads in a few steps."""
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
            for key, value in seen.items():  # Python's max would lose a NaN
                worst[name][key] = value if value != value else max(value, worst[name][key])
        images = images - (0.1 * gradient / gradient.square().mean().sqrt()).float()
    return worst


def _differentiate(engine: Engine, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with engine:
        factors = torch.ones(len(images), 2, device=images.device)
        gradient, means = engine.step(images, labels, factors)
    return means[0].double(), gradient.double()


def counted_flops(teacher: Teacher) -> float:
    """FLOPs of an image forward and back to its pixels: convolutions and matrix products."""
    images = torch.zeros(2, *teacher.shape, device=teacher.device, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        teacher.network(images).sum().backward()  # its weights are frozen
    return float(counter.get_total_flops() / len(images))


@contextlib.contextmanager
def float32_convolutions(strict: bool = True) -> Iterator[None]:
    """Without TF32, which PyTorch's convolutions use by default; nothing where not ``strict``."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and not strict
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@torch.no_grad()
def _restate(network: nn.Module, images: Tensor) -> None:
    """Every BatchNorm layer's running statistics become those of ``images``."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    network.train()(images)
    network.eval()
