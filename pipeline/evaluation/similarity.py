"""Measures of a set of images from their features: variety, repeats, likeness to real images.

Features are float ``[N, D]`` with one row for each image. Cosines are not centred.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 1000  # evenly spaced rows that a measure with quadratic cost reads
NEIGHBOURS = 5  # as in Naeem et al.


@dataclass(frozen=True, slots=True)
class Likeness:
    """How well synthetic images cover real ones (Naeem et al., ICML 2020).

    The ball of an image reaches to its :data:`NEIGHBOURS`-th nearest neighbour in its own set. All
    values lie in [0, 1], but ``density`` can exceed 1.

    Attributes:
        precision: the share of synthetic images inside the ball of a real image.
        recall: the share of real images inside the ball of a synthetic image.
        density: the mean number of real images' balls that hold a synthetic image, relative to the
            number that would hold a real one.
        coverage: the share of real images whose ball holds a synthetic image.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def mean_cosine(features: Tensor) -> float:
    """Mean cosine between two different images: 1 when all are alike. NaN for fewer than two."""
    unit = F.normalize(_some(features).double(), dim=1)
    count = len(unit)
    together = unit.sum(0).square().sum() - unit.square().sum()
    return float(together / (count * (count - 1))) if count > 1 else float("nan")


def vendi_score(features: Tensor) -> float:
    """Effective number of different images, 1 to N (Friedman and Dieng, TMLR 2023).

    ``exp(-sum_i l_i log l_i)`` over the eigenvalues of ``K / N``, ``K`` the cosines.
    """
    unit = F.normalize(_some(features).double(), dim=1)
    # The D x D matrix has the same eigenvalues that are not zero.
    kernel = unit @ unit.T if unit.shape[0] <= unit.shape[1] else unit.T @ unit
    values = torch.linalg.eigvalsh(kernel / len(unit)).clamp_min(0)
    return float(torch.special.entr(values).sum().exp())


def nearest(features: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row: the highest cosine to another row, and which one. ``[N], [N]``, N > 1."""
    unit = F.normalize(features.float(), dim=1)
    best, where = [], []
    for start in range(0, len(unit), MOST):
        cosines = unit[start : start + MOST] @ unit.T
        rows = torch.arange(len(cosines))
        cosines[rows, rows + start] = -2
        values, indices = cosines.max(1)
        best.append(values)
        where.append(indices)
    return torch.cat(best), torch.cat(where)


def frechet_distance(left: Tensor, right: Tensor) -> float:
    """``||m1 - m2||^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` of two sets (Heusel et al. 2017)."""
    one, two = left.double(), right.double()
    gap = (one.mean(0) - two.mean(0)).square().sum()
    first, second = torch.cov(one.T), torch.cov(two.T)
    # tr (S1 S2)^(1/2) from the eigenvalues of a symmetric matrix that is similar to S1 S2.
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return float(gap + first.trace() + second.trace() - 2 * cross)


def likeness(real: Tensor, made: Tensor, neighbours: int = NEIGHBOURS) -> Likeness:
    """Precision, recall, density and coverage of ``made`` against ``real``.

    Each set needs more than ``neighbours`` rows; at most 10,000 of each are looked at.
    """
    real, made = _some(real, 10_000).float(), _some(made, 10_000).float()
    real_radius, made_radius = _radius(real, neighbours), _radius(made, neighbours)
    inside_real = torch.zeros(len(made))
    recalled = covered = 0.0
    for start in range(0, len(real), MOST):
        distances = torch.cdist(real[start : start + MOST], made)
        radius = real_radius[start : start + MOST, None]
        inside = distances < radius
        inside_real += inside.sum(0)
        covered += float(inside.any(1).sum())
        recalled += float((distances < made_radius[None]).any(1).sum())
    return Likeness(
        precision=float((inside_real > 0).float().mean()),
        recall=recalled / len(real),
        density=float(inside_real.mean() / neighbours),
        coverage=covered / len(real),
    )


def _radius(rows: Tensor, neighbours: int) -> Tensor:
    """Distance of each row to its ``neighbours``-th neighbour."""
    found = [
        torch.cdist(rows[start : start + MOST], rows).kthvalue(neighbours + 1, dim=1).values
        for start in range(0, len(rows), MOST)
    ]
    return torch.cat(found)


def _some(rows: Tensor, most: int = MOST) -> Tensor:
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).long()]
