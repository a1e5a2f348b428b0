"""The inner loop: from labels and a seed to the images a frozen teacher was made to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.inversion.engine import Engine
from pipeline.inversion.starts import starting_images
from pipeline.inversion.views import Views, resize
from pipeline.inversion.warm_start import Pool
from pipeline.objective.presets import Objective
from pipeline.objective.terms import Terms, ambiguous_targets, draw_factors

CURVE_POINTS = 20
SMALLEST = 16  # pixels a side of a half-size image that a teacher is shown as it is


@dataclass(frozen=True, slots=True)
class Inverted:
    """Finished images, on the CPU: the published pixels and what the networks make of just those.

    Every tensor has one row an image: ``pixels`` uint8 ``[B, C, H, W]``, ``logits`` and
    ``student_logits`` ``[B, K]``, each of ``terms`` ``[B]`` (``feature`` repeats its batch's),
    ``seeds`` int64 and ``attempts`` int64 ``[B]``, ``finite`` bool ``[B]``: False where the
    optimisation diverged and the pixels mean nothing. ``curve`` has the mean of each unweighted
    term at some iterations, the last for the published pixels.
    """

    pixels: Tensor
    logits: Tensor
    student_logits: Tensor | None
    terms: Terms
    seeds: Tensor
    attempts: Tensor
    finite: Tensor
    curve: list[dict[str, float]]

    def replaced(self, rows: Tensor, other: Inverted) -> Inverted:
        """These images with ``rows`` (bool ``[B]``) taken from ``other``."""
        mine, theirs = self.terms, other.terms
        compete = None
        if mine.compete is not None and theirs.compete is not None:
            compete = _choose(rows, theirs.compete, mine.compete)
        student_logits = None
        if self.student_logits is not None and other.student_logits is not None:
            student_logits = _choose(rows, other.student_logits, self.student_logits)
        return Inverted(
            pixels=_choose(rows, other.pixels, self.pixels),
            logits=_choose(rows, other.logits, self.logits),
            student_logits=student_logits,
            terms=Terms(
                _choose(rows, theirs.classification, mine.classification),
                _choose(rows, theirs.tv, mine.tv),
                _choose(rows, theirs.l2, mine.l2),
                _choose(rows, theirs.feature, mine.feature),
                compete,
                _choose(rows, theirs.factors, mine.factors),
            ),
            seeds=_choose(rows, other.seeds, self.seeds),
            attempts=_choose(rows, other.attempts, self.attempts),
            finite=_choose(rows, other.finite, self.finite),
            curve=self.curve if bool(self.finite.all()) else other.curve,
        )

    def taken(self, rows: Tensor) -> Inverted:
        """The images of ``rows`` (int64 ``[N]``), in that order; the curve stays the batch's."""

        def of(holder: Inverted | Terms) -> dict[str, Any]:
            values = {field.name: getattr(holder, field.name) for field in fields(holder)}
            return {name: v[rows] for name, v in values.items() if isinstance(v, Tensor)}

        return replace(self, **of(self), terms=replace(self.terms, **of(self.terms)))

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
    """Optimise one batch of images towards ``labels`` (int64 ``[B]``, on the CPU).

    They start from noise or, where there is a ``pool``, from its images (:class:`Pool`).
    Same arguments, machine and thread count give the same bytes: every random choice comes from a
    CPU generator seeded with ``seed``. ``progress`` is called with 1 after each iteration.
    """
    teacher, objective = engine.teacher, engine.objective
    generator = torch.Generator().manual_seed(seed)
    images = starting_images(len(labels), teacher.shape, objective.start, generator, teacher.device)
    if pool is not None:
        images = pool.warmed(images, labels, teacher.preprocessing, generator)
    if objective.clamp:
        images = teacher.preprocessing.clamp(images)
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


@dataclass(frozen=True, slots=True)
class _Stage:
    """Iterations ``steps`` of ``iterations``, all at one size of the images."""

    engine: Engine
    targets: Tensor
    factors: Tensor
    views: Views
    steps: range
    iterations: int
    recorded: list[tuple[int, Tensor]]
    progress: Callable[[int], None] | None


def _optimise(stage: _Stage, images: Tensor, small: bool) -> Tensor:
    """The images after a stage, at the teacher's size.

    ``small`` ones are optimised at half of it. The teacher is shown them as they are if they are
    large enough still and it takes them, or enlarged: then they are smooth, and as dear.
    """
    engine, teacher, objective = stage.engine, stage.engine.teacher, stage.engine.objective
    full = teacher.shape[1:]
    half = (-(-full[0] // 2), -(-full[1] // 2))
    enlarge = small and not (min(half) >= SMALLEST and engine.takes(half))
    images = resize(images, half) if small else images
    images.requires_grad_(True)
    optimizer = torch.optim.Adam(
        [images], lr=objective.learning_rate, betas=objective.betas, fused=True
    )
    for step, iteration in enumerate(stage.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(objective, step, len(stage.steps))
        shown = resize(images, full) if enlarge else images
        view = stage.views.show(shown, iteration)
        gradient, means = engine.step(view, stage.targets, stage.factors)
        view.backward(gradient)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if objective.clamp:
            with torch.no_grad():
                images.copy_(teacher.preprocessing.clamp(images))
        if iteration % max(1, stage.iterations // CURVE_POINTS) == 0:
            # A copy: the next step may write over it.
            stage.recorded.append((iteration, means.clone()))
        if stage.progress is not None:
            stage.progress(1)
    return resize(images.detach(), full) if small else images.detach()


def _finish(
    engine: Engine,
    images: Tensor,
    labels: Tensor,
    factors: Tensor,
    seed: int,
    iterations: int,
    recorded: list[tuple[int, Tensor]],
) -> Inverted:
    """Quantise, and ask the networks about what will be published."""
    finite = images.isfinite().flatten(1).all(1)
    pixels = engine.teacher.preprocessing.quantise(images.nan_to_num())
    judgement = engine.judge(engine.teacher.preprocessing.normalise(pixels), labels, factors)
    terms, student_logits = judgement.terms, judgement.student_logits
    means = [part.mean() for part in (terms.total(engine.objective), *terms.unweighted())]
    recorded.append((iterations, torch.stack(means)))
    return Inverted(
        pixels=pixels.cpu(),
        logits=judgement.logits.cpu(),
        student_logits=None if student_logits is None else student_logits.cpu(),
        terms=Terms(
            terms.classification.cpu(),
            terms.tv.cpu(),
            terms.l2.cpu(),
            terms.feature.expand(len(labels)).cpu(),
            None if terms.compete is None else terms.compete.cpu(),
            factors.cpu(),
        ),
        seeds=torch.full((len(labels),), seed),
        attempts=torch.zeros(len(labels), dtype=torch.int64),
        finite=finite.cpu(),
        curve=[
            {"iteration": iteration, **_rounded(engine.names, values)}
            for iteration, values in recorded
        ],
    )


def _rounded(names: list[str], means: Tensor) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in zip(names, means.tolist(), strict=True)}


def _choose(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (old.ndim - 1)), new, old)


def learning_rate(objective: Objective, iteration: int, iterations: int) -> float:
    """The rate at ``iteration``: a linear warm-up, then constant or a cosine to zero."""
    warmup = min(objective.warmup, iterations // 2)
    if iteration < warmup:
        return objective.learning_rate * (iteration + 1) / warmup
    if objective.schedule == "constant":
        return objective.learning_rate
    done = (iteration - warmup) / max(1, iterations - warmup)
    return float(objective.learning_rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done))))
