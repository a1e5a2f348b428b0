"""The inner loop: from labels and a seed to the images a frozen teacher was made to see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.engine import Engine, Judgement
from pipeline.objective import Objective

CURVE_POINTS = 20


@dataclass(frozen=True, slots=True)
class Inverted:
    """A finished batch: the published pixels and what the networks make of exactly those.

    ``pixels`` is uint8 ``[B, C, H, W]``, on the CPU like all else here; ``curve`` has the mean of
    each unweighted term at some iterations, the last for the published pixels.
    """

    pixels: Tensor
    judgement: Judgement
    curve: list[dict[str, float]]


def invert(
    engine: Engine,
    labels: Tensor,
    seed: int,
    iterations: int,
    progress: Callable[[int], None] | None = None,
) -> Inverted:
    """Optimise one batch of images towards ``labels`` (int64 ``[B]``, on the CPU).

    Same arguments, machine and thread count give the same bytes: every random choice comes from a
    CPU generator seeded with ``seed``. ``progress`` is called with 1 after each iteration.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
    """
    teacher, objective = engine.teacher, engine.objective
    generator = torch.Generator().manual_seed(seed)
    labels = labels.to(teacher.device)
    start = starting_images(len(labels), teacher.shape, objective.start, generator)
    images = start.to(teacher.device)
    if objective.clamp:
        images = teacher.preprocessing.clamp(images)
    moves = _random_moves(iterations, objective, generator)
    images.requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=objective.learning_rate, betas=objective.betas)
    recorded: list[tuple[int, Tensor]] = []
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = learning_rate(objective, iteration, iterations)
        total, means = engine.step(_move(images, *moves[iteration]), labels)
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if objective.clamp:
            with torch.no_grad():
                images.copy_(teacher.preprocessing.clamp(images))
        if iteration % max(1, iterations // CURVE_POINTS) == 0:
            recorded.append((iteration, means))
        if progress is not None:
            progress(1)
    return _finish(engine, images.detach(), labels, iterations, recorded)


def _finish(
    engine: Engine,
    images: Tensor,
    labels: Tensor,
    iterations: int,
    recorded: list[tuple[int, Tensor]],
) -> Inverted:
    """Quantise, and ask the networks about what will be published."""
    pixels = engine.teacher.preprocessing.quantise(images)
    judgement = engine.judge(engine.teacher.preprocessing.normalise(pixels), labels)
    terms = judgement.terms
    parts = [terms.total(engine.objective), *terms.unweighted()]
    recorded.append((iterations, torch.stack([part.mean() for part in parts])))
    curve = [
        {"iteration": iteration, **_rounded(engine.names, means)} for iteration, means in recorded
    ]
    if not all(math.isfinite(value) for point in curve for value in point.values()):
        raise FloatingPointError(
            "the loss is not finite: lower synthesis.objective.learning_rate or use float32"
        )
    return Inverted(pixels.cpu(), judgement.cpu(), curve)


def _rounded(names: list[str], means: Tensor) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in zip(names, means.tolist(), strict=True)}


def starting_images(
    count: int, shape: tuple[int, int, int], start: str, generator: torch.Generator
) -> Tensor:
    """Random images in normalised space, ``[count, C, H, W]`` in float32.

    ``white`` is unit Gaussian noise. ``low-frequency`` is coloured blobs: unit noise on a grid of
    about one cell to five pixels, drawn smoothly to full size, under weak white noise.
    """
    channels, height, width = shape
    white = torch.randn(count, *shape, generator=generator)
    if start == "white":
        return white
    grid = (max(2, round(height / 5)), max(2, round(width / 5)))
    coarse = torch.randn(count, channels, *grid, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return smooth + 0.1 * white


def learning_rate(objective: Objective, iteration: int, iterations: int) -> float:
    """The rate at ``iteration``: a linear warm-up, then constant or a cosine to zero."""
    warmup = min(objective.warmup, iterations // 2)
    if iteration < warmup:
        return objective.learning_rate * (iteration + 1) / warmup
    if objective.schedule == "constant":
        return objective.learning_rate
    done = (iteration - warmup) / max(1, iterations - warmup)
    return float(objective.learning_rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done))))


def _random_moves(
    iterations: int, objective: Objective, generator: torch.Generator
) -> list[tuple[int, int, bool]]:
    shifts = torch.randint(
        -objective.jitter, objective.jitter + 1, (iterations, 2), generator=generator
    ).tolist()
    flips = torch.randint(0, 2, (iterations,), generator=generator).tolist()
    return [(dy, dx, bool(f) and objective.flip) for (dy, dx), f in zip(shifts, flips, strict=True)]


def _move(images: Tensor, down: int, right: int, flip: bool) -> Tensor:
    """The same small shift and flip for the whole batch, so that no pixel keeps its place."""
    moved = torch.roll(images, (down, right), (2, 3))
    return moved.flip(3) if flip else moved
