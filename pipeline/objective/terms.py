"""The table of the objective's terms, their values for a batch, and their weighted sum.

The names in reports, the total, the curve of means, the factors and the Parquet columns all follow
from :data:`TERMS`. The objective is Eq. 2 of Yin et al. 2020, "Dreaming to Distill"::

    total = w_classification L + w_tv R_TV + w_l2 R_l2 + w_feature R_feature + w_compete R_compete
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pipeline.objective.bn_statistics import LayerStatistics
from pipeline.objective.classification import classification_loss
from pipeline.objective.compete import compete_loss
from pipeline.objective.feature import feature_loss
from pipeline.objective.image_priors import l2_norm, total_variation
from pipeline.objective.presets import Objective


@dataclass(frozen=True, slots=True)
class TermInputs:
    """Everything that a term may look at: one batch, and what the networks make of it.

    ``images`` are ``[B, C, H, W]`` in the units of the optimisation. ``labels`` are classes,
    ``[B]``, or probabilities, ``[B, K]``. ``logits`` are the teacher's, ``[B, K]``. ``layers`` hold
    the statistics of the teacher's BatchNorm layers and may be empty. ``student_logits``,
    ``[B, K]``, are None where there is no student.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    layers: Sequence[LayerStatistics]
    student_logits: Tensor | None
    objective: Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One term of the objective.

    Args:
        name: The name in reports, and in the Parquet column ``loss_NAME``.
        weight: The field of :class:`Objective` that holds the term's weight.
        function: Computes the unweighted value of a batch, ``[B]`` or a scalar.
        per_image: Whether the value is ``[B]``, one for each image. Otherwise it is a scalar for
            the whole batch.
        description: The description of the Parquet column.
        spread: The field of :class:`Objective` that holds the spread of the weight, if images may
            have weights of their own (:func:`draw_factors`). None otherwise.
        needs_student: Whether the term exists only where there is a student.
        needs_labels: Whether the term says something only of images with labels.

    Raises:
        TypeError: :class:`Objective` lacks a field that ``weight`` or ``spread`` names.
    """

    name: str
    weight: str
    function: Callable[[TermInputs], Tensor]
    per_image: bool
    description: str
    spread: str | None = None
    needs_student: bool = False
    needs_labels: bool = False

    def __post_init__(self) -> None:
        known = {field.name for field in fields(Objective)}
        for name in (self.weight, self.spread):
            if name is not None and name not in known:
                raise TypeError(
                    f"term {self.name}: Objective has no field {name!r}: "
                    "declare it in pipeline/objective/presets.py"
                )


def _feature(batch: TermInputs) -> Tensor:
    if not batch.layers:
        return batch.images.new_zeros(())
    return feature_loss(batch.layers, batch.objective.feature_form)


def _compete(batch: TermInputs) -> Tensor:
    assert batch.student_logits is not None
    objective = batch.objective
    return compete_loss(
        batch.logits,
        batch.student_logits,
        batch.labels,
        masked=objective.masked,
        temperature=objective.temperature,
        confident=objective.confident,
    )


TERMS: tuple[Term, ...] = (
    Term(
        name="classification",
        weight="classification",
        function=lambda batch: classification_loss(batch.logits, batch.labels),
        per_image=True,
        description="L, cross-entropy against cls",
        spread="classification_spread",
        needs_labels=True,
    ),
    Term(
        name="tv",
        weight="tv",
        function=lambda batch: total_variation(batch.images),
        per_image=True,
        description="R_TV",
        spread="tv_spread",
    ),
    Term(
        name="l2",
        weight="l2",
        function=lambda batch: l2_norm(batch.images),
        per_image=True,
        description="R_l2",
    ),
    Term(
        name="feature",
        weight="feature",
        function=_feature,
        per_image=False,
        description="R_feature of the whole batch",
    ),
    Term(
        name="compete",
        weight="compete",
        function=_compete,
        per_image=True,
        description="R_compete; null without a student",
        needs_student=True,
    ),
)
"""All terms, in the order of their sum and of their Parquet columns."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The unweighted terms of one batch.

    ``values`` maps the name of each term that exists to its value: ``[B]``, or a scalar where the
    term is one for the whole batch. ``factors`` are those of :func:`draw_factors`.

    Example::

        terms = evaluate_terms(inputs, factors)
        terms["tv"]  # [B]
        terms.total(inputs.objective).mean().backward()
    """

    values: dict[str, Tensor]
    factors: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def factor_of(self) -> dict[str, Tensor]:
        """The factor of each image, ``[B]``, by the name of the term whose weight it multiplies."""
        return dict(zip(factor_names(), self.factors.unbind(1), strict=True))

    def total(self, objective: Objective) -> Tensor:
        """The weighted sum of each image, ``[B]``. Its mean is minimised.

        A term of weight 0 is left out, so that a NaN in it does not reach the total.
        """
        factor_of = self.factor_of()
        total = self.factors.new_zeros(len(self.factors))
        for term in TERMS:
            weight = getattr(objective, term.weight)
            if weight and term.name in self.values:
                value = self.values[term.name]
                if term.name in factor_of:
                    value = factor_of[term.name] * value
                total = total + weight * value
        return total

    def means(self, total: Tensor) -> Tensor:
        """The means of ``total`` and of each term, in the order of :func:`reported_names`."""
        return torch.stack([part.detach().mean() for part in (total, *self.values.values())])

    def expanded(self) -> Terms:
        """The same terms with ``[B]`` values only: those of the whole batch are repeated."""
        whole = {term.name for term in TERMS if not term.per_image}
        count = len(self.factors)
        return Terms(
            {n: v.expand(count) if n in whole else v for n, v in self.values.items()}, self.factors
        )

    def map(self, function: Callable[..., Tensor], *others: Terms) -> Terms:
        """Apply ``function`` to each tensor and to the same tensor of each of ``others``."""
        values = {
            name: function(value, *(other[name] for other in others))
            for name, value in self.values.items()
        }
        return Terms(values, function(self.factors, *(other.factors for other in others)))


def reported_names(student: bool) -> list[str]:
    """The names of the total and of all terms that exist with or without a student."""
    return ["total", *(term.name for term in TERMS if student or not term.needs_student)]


def factor_names() -> list[str]:
    """The names of the terms whose weight is multiplied by a factor of each image."""
    return [term.name for term in TERMS if term.spread is not None]


def draw_factors(objective: Objective, count: int, generator: torch.Generator) -> Tensor:
    """Draw the factors that multiply the weights of each image.

    A factor is ``e^u`` with ``u`` uniform in ``[-s, s]``, where ``s`` is the spread of the term.

    Args:
        objective: Holds the spreads. A spread of 0 gives factors of 1.
        count: The number of images, B.
        generator: The source of the random draws, on the CPU.

    Returns:
        Factors, float32 ``[B, F]``, above 0, one column for each name in :func:`factor_names`.
    """
    names = [term.spread for term in TERMS if term.spread is not None]
    spreads = torch.tensor([getattr(objective, name) for name in names])
    draws = torch.rand(count, len(names), generator=generator)
    factors: Tensor = (spreads * (2 * draws - 1)).exp()
    return factors


def evaluate_terms(inputs: TermInputs, factors: Tensor) -> Terms:
    """Compute all terms of one batch.

    Args:
        inputs: The batch and what the networks make of it.
        factors: The images' factors, ``[B, F]``, of :func:`draw_factors`.

    Returns:
        The unweighted terms. Those that need a student are absent where there is none.
    """
    student = inputs.student_logits is not None
    values = {
        term.name: term.function(inputs) for term in TERMS if student or not term.needs_student
    }
    return Terms(values, factors)
