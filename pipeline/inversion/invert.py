"""The inversion of one batch: optimise images until the teacher sees the given labels in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.dataset.plan import derive_seed
from pipeline.inversion.engine import Engine
from pipeline.inversion.scales import Scales
from pipeline.inversion.selected_starts import selected_starts
from pipeline.inversion.starts import starting_images
from pipeline.inversion.views import Views, resize
from pipeline.inversion.warm_start import Pool
from pipeline.objective.classification import ambiguous_targets
from pipeline.objective.presets import Objective
from pipeline.objective.terms import Terms, draw_factors

CURVE_POINTS = 20  # number of points of a curve, about
SMALLEST = 16  # smallest side, in pixels, of a half-size image that the teacher sees unenlarged


@dataclass(frozen=True, slots=True)
class Inverted:
    """Finished images and the networks' outputs for exactly these pixels. Everything is on the CPU.

    Every tensor has one row for each image.

    Attributes:
        pixels: The published pixels, uint8 ``[B, C, H, W]``.
        logits: The teacher's logits, float32 ``[B, K]``.
        student_logits: The student's logits, float32 ``[B, K]``, or None without a student.
        terms: The unweighted terms, ``[B]`` each. A term of the whole batch is repeated.
        seeds: The seed of each image's batch, int64 ``[B]``.
        attempts: The attempt that each image is from, int64 ``[B]``, from 0.
        finite: bool ``[B]``. False where the optimisation diverged: the pixels mean nothing there.
        curve: The mean of each unweighted term at about 20 iterations, and at the end for the
            published pixels.
    """

    pixels: Tensor
    logits: Tensor
    student_logits: Tensor | None
    terms: Terms
    seeds: Tensor
    attempts: Tensor
    finite: Tensor
    curve: list[dict[str, float]]

    def map(self, function: Callable[..., Tensor], *others: Inverted) -> Inverted:
        """Apply ``function`` to each tensor and to the same tensor of each of ``others``.

        The curve stays this record's. An optional tensor that is None stays None.

        Example::

            first_three = images.map(lambda tensor: tensor[:3])
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {
            name: function(value, *(getattr(other, name) for other in others))
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        terms = self.terms.map(function, *(other.terms for other in others))
        return replace(self, **changed, terms=terms)

    def replaced(self, rows: Tensor, other: Inverted) -> Inverted:
        """These images, but those of ``rows`` (bool ``[B]``) from ``other``.

        The curve becomes that of ``other`` if an image here has diverged.
        """
        chosen = self.map(lambda mine, theirs: _choose(rows, theirs, mine), other)
        return replace(chosen, curve=self.curve if bool(self.finite.all()) else other.curve)

    def taken(self, rows: Tensor) -> Inverted:
        """The images of ``rows`` (int64 ``[N]``), in that order. The curve stays the batch's."""
        return self.map(lambda tensor: tensor[rows])

    def confidence(self, labels: Tensor) -> Tensor:
        """The teacher's probability of each image's label, ``[B]``."""
        return self.logits.softmax(1).gather(1, labels[:, None])[:, 0]


def invert(
    engine: Engine,
    labels: Tensor,
    seed: int,
    iterations: int,
    progress: Callable[[int], None] | None = None,
    pool: Pool | None = None,
) -> Inverted:
    """Optimise one batch of images towards ``labels``.

    The same arguments, machine and number of threads give the same bytes: every random choice comes
    from a CPU generator with the seed ``seed``.

    Args:
        engine: Teacher, student and objective, inside its ``with`` block.
        labels: The intended classes, int64 ``[B]``, on the CPU.
        seed: The seed of all random choices.
        iterations: The number of gradient steps, at least 0.
        progress: Called with 1 after each iteration.
        pool: Earlier images that the batch starts from. None starts it from noise alone.

    Returns:
        The finished images, with the networks' outputs for them.

    Example::

        with Engine(teacher, PRESETS["normalised"]) as engine:
            images = invert(engine, torch.arange(10), seed=0, iterations=200)
        images.pixels  # uint8 [10, C, H, W]
    """
    teacher, objective = engine.teacher, engine.objective
    generator = torch.Generator().manual_seed(seed)
    if objective.draws > 1:
        images = selected_starts(engine, labels, derive_seed(seed, 0))
    else:
        images = starting_images(
            len(labels), teacher.shape, objective.start, generator, teacher.device
        )
    if pool is not None:
        images = pool.warmed(images, labels, engine.space.pixels, generator)
    if objective.clamp:
        images = engine.space.pixels.clamp(images)
    views = Views(objective, iterations, generator)
    factors = draw_factors(objective, len(labels), generator).to(teacher.device)
    targets = labels
    if objective.ambiguity:
        targets = ambiguous_targets(labels, teacher.classes, objective.ambiguity, generator)
    labels, targets = labels.to(teacher.device), targets.to(teacher.device)
    coarse = round(objective.coarse * iterations)
    recorded: list[tuple[int, Tensor]] = []
    for steps in (range(coarse), range(coarse, iterations)):
        if steps:
            run = _Stage(engine, targets, factors, views, steps, iterations, recorded, progress)
            images = _optimise(run, images, small=steps.start < coarse)
    return _finish(engine, images, labels, factors, seed, iterations, recorded)


def drawn_factors(
    objective: Objective,
    shape: tuple[int, int, int],
    count: int,
    seed: int,
    iterations: int,
    warm: bool,
) -> Tensor:
    """Draw the factors that :func:`invert` drew for a batch, without inverting it.

    Args:
        objective: The objective of the batch.
        shape: Channels, height and width of an image.
        count: The number of images in the batch, B.
        seed: The seed of the batch and attempt.
        iterations: The number of gradient steps.
        warm: Whether the batch started from earlier images.

    Returns:
        Factors, float32 ``[B, F]``.
    """
    generator = torch.Generator().manual_seed(seed)
    if objective.draws == 1:  # selected starts have a generator of their own
        starting_images(count, shape, objective.start, generator)
    if warm:
        torch.rand(count, generator=generator)  # as Pool.warmed draws
    Views(objective, iterations, generator)
    return draw_factors(objective, count, generator)


@dataclass(frozen=True, slots=True)
class _Stage:
    """The iterations ``steps`` out of ``iterations``: all of them at one size of the images."""

    engine: Engine
    targets: Tensor
    factors: Tensor
    views: Views
    steps: range
    iterations: int
    recorded: list[tuple[int, Tensor]]
    progress: Callable[[int], None] | None


def _optimise(stage: _Stage, images: Tensor, small: bool) -> Tensor:
    """Run the iterations of a stage. Returns the images at the teacher's size.

    ``small`` images are optimised at half of that size. The teacher sees them at half size if they
    have at least ``SMALLEST`` pixels a side and the teacher accepts the size. Otherwise it sees
    enlarged copies: the images are as smooth, but a step costs as much as at full size.
    """
    engine, teacher, objective = stage.engine, stage.engine.teacher, stage.engine.objective
    full = teacher.shape[1:]
    half = (-(-full[0] // 2), -(-full[1] // 2))
    enlarge = small and not (min(half) >= SMALLEST and engine.takes(half))
    images = resize(images, half) if small else images
    scales = Scales(images, objective.scales)
    optimizer = torch.optim.Adam(
        scales.layers, lr=objective.learning_rate, betas=objective.betas, fused=True
    )
    images = scales.images()
    for step, iteration in enumerate(stage.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(objective, step, len(stage.steps))
        view = stage.views.show(resize(images, full) if enlarge else images, iteration)
        competes = iteration < objective.compete_until * stage.iterations
        gradient, means = engine.step(view, stage.targets, stage.factors, competes)
        view.backward(gradient)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        images = scales.limited(engine.space.pixels.clamp) if objective.clamp else scales.images()
        if iteration % max(1, stage.iterations // CURVE_POINTS) == 0:
            # Copy the means: the next step may overwrite them.
            stage.recorded.append((iteration, means.clone()))
        if stage.progress is not None:
            stage.progress(1)
    images = images.detach()
    return resize(images, full) if small else images


def _finish(
    engine: Engine,
    images: Tensor,
    labels: Tensor,
    factors: Tensor,
    seed: int,
    iterations: int,
    recorded: list[tuple[int, Tensor]],
) -> Inverted:
    """Quantise the images, and evaluate the networks on the published pixels."""
    finite = images.isfinite().flatten(1).all(1)
    pixels = engine.space.pixels.quantise(images.nan_to_num())
    judgement = engine.judge(engine.space.pixels.normalise(pixels), labels, factors)
    terms = judgement.terms
    recorded.append((iterations, terms.means(terms.total(engine.objective))))
    finished = Inverted(
        pixels=pixels,
        logits=judgement.logits,
        student_logits=judgement.student_logits,
        terms=terms.expanded(),
        seeds=torch.full((len(labels),), seed),
        attempts=torch.zeros(len(labels), dtype=torch.int64),
        finite=finite,
        curve=[
            {"iteration": iteration, **_rounded(engine.names, values)}
            for iteration, values in recorded
        ],
    )
    return finished.map(Tensor.cpu)


def _rounded(names: list[str], means: Tensor) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in zip(names, means.tolist(), strict=True)}


def _choose(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` in the rows that are True, else ``old``."""
    return torch.where(rows.view(-1, *[1] * (old.ndim - 1)), new, old)


def learning_rate(objective: Objective, iteration: int, iterations: int) -> float:
    """The learning rate at ``iteration`` of ``iterations``.

    It rises linearly during the warm-up. Then it is constant, or falls to zero as a cosine.
    """
    warmup = min(objective.warmup, iterations // 2)
    if iteration < warmup:
        return objective.learning_rate * (iteration + 1) / warmup
    if objective.schedule == "constant":
        return objective.learning_rate
    done = (iteration - warmup) / max(1, iterations - warmup)
    return float(objective.learning_rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done))))
