"""The inner loop: from labels and a seed to the images a frozen teacher was made to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.objective import Objective, Terms, evaluate_terms
from pipeline.statistics import FeatureStatistics
from pipeline.teacher import Teacher

CURVE_POINTS = 20


@dataclass(frozen=True, slots=True)
class Inverted:
    """A finished batch: the published pixels and what the networks make of exactly those.

    ``pixels`` is uint8 ``[B, C, H, W]``; ``logits`` and ``student_logits`` float32 ``[B, K]``;
    ``curve`` maps iteration to the mean of each unweighted term.
    """

    pixels: Tensor
    logits: Tensor
    student_logits: Tensor | None
    terms: Terms
    curve: list[dict[str, float]]


def invert(
    teacher: Teacher,
    labels: Tensor,
    seed: int,
    objective: Objective,
    iterations: int,
    student: nn.Module | None = None,
    progress: Callable[[int], None] | None = None,
) -> Inverted:
    """Optimise one batch of images towards ``labels`` (int64 ``[B]``, on the CPU).

    Same arguments, machine and thread count give the same bytes: every random choice comes from a
    CPU generator seeded with ``seed``. ``progress`` is called with 1 after each iteration.
    """
    generator = torch.Generator().manual_seed(seed)
    device = teacher.device
    labels = labels.to(device)
    images = starting_images(len(labels), teacher.shape, objective.start, generator).to(device)
    if objective.clamp:
        images = teacher.preprocessing.clamp(images)
    moves = _random_moves(iterations, objective, generator)
    images.requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=objective.learning_rate, betas=objective.betas)
    recorded: list[tuple[int, Terms]] = []
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(objective, iteration, iterations)
        moved = _move(images, *moves[iteration])
        terms = _forward(teacher, moved, labels, objective, student)[0]
        terms.total(objective).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if objective.clamp:
            with torch.no_grad():
                images.copy_(teacher.preprocessing.clamp(images))
        if iteration % max(1, iterations // CURVE_POINTS) == 0:
            recorded.append((iteration, terms))
        if progress is not None:
            progress(1)
    pixels = teacher.preprocessing.quantise(images.detach())
    with torch.no_grad():
        published = teacher.preprocessing.normalise(pixels)
        terms, logits, student_logits = _forward(teacher, published, labels, objective, student)
    recorded.append((iterations, terms))
    return Inverted(
        pixels=pixels.cpu(),
        logits=logits.float().cpu(),
        student_logits=None if student_logits is None else student_logits.float().cpu(),
        terms=terms,
        curve=[_point(iteration, terms, objective) for iteration, terms in recorded],
    )


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


def _forward(
    teacher: Teacher,
    images: Tensor,
    labels: Tensor,
    objective: Objective,
    student: nn.Module | None,
) -> tuple[Terms, Tensor, Tensor | None]:
    with FeatureStatistics(teacher.network) as statistics:
        logits = teacher.network(images)
        layers = statistics.collect()
    student_logits = None if student is None else student(images)
    form = objective.feature_form
    return (
        evaluate_terms(images, labels, logits, layers, student_logits, form),
        logits,
        student_logits,
    )


def _point(iteration: int, terms: Terms, objective: Objective) -> dict[str, float]:
    values = {
        "total": terms.total(objective),
        "classification": terms.classification,
        "tv": terms.tv,
        "l2": terms.l2,
        "feature": terms.feature,
    }
    if terms.compete is not None:
        values["compete"] = terms.compete
    means = {name: float(f"{value.mean().item():.6g}") for name, value in values.items()}
    return {"iteration": iteration, **means}
