"""Measures of sets of images, computed from features: variety, repeats, likeness to real images.

Features are float tensors ``[N, D]`` with one row for each image. They are not centred before a
cosine is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 1000  # Measures of quadratic cost use at most this many rows, evenly spaced.
NEIGHBOURS = 5  # The number that Naeem et al. use.


@dataclass(frozen=True, slots=True)
class Likeness:
    """How well synthetic images cover real images (Naeem et al., ICML 2020).

    The ball of an image has the distance to its ``NEIGHBOURS``-th neighbour in its own set as
    radius.

    Attributes:
        precision: Share of synthetic images inside the ball of any real image, in [0, 1].
        recall: Share of real images inside the ball of any synthetic image, in [0, 1].
        density: Mean number of real images' balls that a synthetic image lies in, divided by
            ``NEIGHBOURS``; about 1 for images like the real ones, 0 or more.
        coverage: Share of real images whose ball contains a synthetic image, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def mean_cosine(features: Tensor) -> float:
    """Compute the mean cosine between two different images.

    Args:
        features: ``[N, D]``. At most ``MOST`` rows are used.

    Returns:
        A value in [-1, 1]; 1 if all features have the same direction. NaN for fewer than two rows.
    """
    unit = F.normalize(_some(features).double(), dim=1)
    count = len(unit)
    total = unit.sum(0).square().sum() - unit.square().sum()
    return float(total / (count * (count - 1))) if count > 1 else float("nan")


def vendi_score(features: Tensor) -> float:
    """Compute the effective number of different images (Friedman and Dieng, TMLR 2023).

    ``exp(-sum_i l_i log l_i)``, where ``l_i`` are the eigenvalues of ``K / N`` and ``K`` is the
    matrix of cosines.

    Args:
        features: ``[N, D]``. At most ``MOST`` rows are used.

    Returns:
        A value in [1, N]: 1 if all images are the same, N if all cosines are 0.
    """
    unit = F.normalize(_some(features).double(), dim=1)
    # The D x D matrix has the same non-zero eigenvalues and is smaller where D < N.
    kernel = unit @ unit.T if unit.shape[0] <= unit.shape[1] else unit.T @ unit
    values = torch.linalg.eigvalsh(kernel / len(unit)).clamp_min(0)
    return float(torch.special.entr(values).sum().exp())


def nearest(features: Tensor) -> tuple[Tensor, Tensor]:
    """Find the most similar other row for each row.

    Args:
        features: ``[N, D]``, N > 1.

    Returns:
        The cosine to that row, ``[N]``, and its index, ``[N]``.
    """
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
    """Compute the Fréchet distance of two sets of features (Heusel et al., NeurIPS 2017).

    ``||m1 - m2||^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``, with means ``m`` and covariances ``S``.

    Args:
        left: ``[N, D]``.
        right: ``[M, D]``.

    Returns:
        A value of 0 or more; 0 if means and covariances are equal.
    """
    one, two = left.double(), right.double()
    gap = (one.mean(0) - two.mean(0)).square().sum()
    first, second = torch.cov(one.T), torch.cov(two.T)
    # S1 S2 is similar to the symmetric matrix R S2 R, R = S1^(1/2), and has its eigenvalues.
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return float(gap + first.trace() + second.trace() - 2 * cross)


def likeness(real: Tensor, synthetic: Tensor, neighbours: int = NEIGHBOURS) -> Likeness:
    """Compare synthetic images with real images.

    Args:
        real: ``[N, D]``, N above ``neighbours``. At most 10,000 rows are used.
        synthetic: ``[M, D]``, M above ``neighbours``. At most 10,000 rows are used.
        neighbours: Number of neighbours that decides the radius of a ball.

    Returns:
        Precision, recall, density and coverage.
    """
    real, synthetic = _some(real, 10_000).float(), _some(synthetic, 10_000).float()
    real_radius, synthetic_radius = _radius(real, neighbours), _radius(synthetic, neighbours)
    inside_real = torch.zeros(len(synthetic))
    recalled = covered = 0.0
    for start in range(0, len(real), MOST):
        distances = torch.cdist(real[start : start + MOST], synthetic)
        radius = real_radius[start : start + MOST, None]
        inside = distances < radius
        inside_real += inside.sum(0)
        covered += float(inside.any(1).sum())
        recalled += float((distances < synthetic_radius[None]).any(1).sum())
    return Likeness(
        precision=float((inside_real > 0).float().mean()),
        recall=recalled / len(real),
        density=float(inside_real.mean() / neighbours),
        coverage=covered / len(real),
    )


def _radius(rows: Tensor, neighbours: int) -> Tensor:
    """Compute the distance of each row to its ``neighbours``-th neighbour."""
    radii = [
        torch.cdist(rows[start : start + MOST], rows).kthvalue(neighbours + 1, dim=1).values
        for start in range(0, len(rows), MOST)
    ]
    return torch.cat(radii)


def _some(rows: Tensor, most: int = MOST) -> Tensor:
    """Select at most ``most`` rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).long()]
