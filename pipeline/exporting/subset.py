"""Choose a balanced subset of a dataset from its plan, before any image is read."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.plan import Labels
from pipeline.errors import UserError


def choose(labels: Labels, images: int | None, seed: int | None = None) -> NDArray[np.bool_]:
    """Choose the same number of images of each class.

    Where ``images`` is no multiple of the number of classes, some classes get one image more: those
    that come first in the dataset, or with ``seed`` random ones. A class without images is left
    out.

    Args:
        labels: the classes of all images, in the order of the keys.
        images: how many to choose; None chooses all.
        seed: draws the classes with one image more, and the images of each class. None takes the
            first ones, in the order of the keys.

    Returns:
        Whether each image is chosen.

    Raises:
        UserError: the dataset has too few images of a class.
    """
    if images is None:
        return np.ones(len(labels), dtype=bool)
    if not 1 <= images <= len(labels):
        raise UserError(
            f"{images} images cannot be chosen: name a number from 1 to {len(labels)}, the "
            "number of images in the dataset"
        )
    present, firsts, counts = np.unique(labels, return_index=True, return_counts=True)
    each, extra = divmod(images, len(present))
    wanted = np.full(len(present), each)
    random = None if seed is None else np.random.default_rng(seed)
    order = np.argsort(firsts)
    if random is not None and extra:
        order = random.permutation(np.flatnonzero(counts > each))
    wanted[order[:extra]] += 1
    short = np.flatnonzero(counts < wanted)
    if len(short):
        raise UserError(
            f"{images} images cannot be balanced: class {present[short[0]]} has "
            f"{counts[short[0]]} images, and {wanted[short[0]]} are needed. Name at most "
            f"{counts.min() * len(present)} images"
        )
    chosen = np.zeros(len(labels), dtype=bool)
    for label, number in zip(present, wanted, strict=True):
        places = np.flatnonzero(labels == label)
        if random is not None:
            random.shuffle(places)
        chosen[places[:number]] = True
    return chosen


def rule(labels: Labels, chosen: NDArray[np.bool_], labelled: bool = True) -> str:
    """Say in words which images of the dataset were chosen."""
    if chosen.all():
        return "all images"
    if not labelled:
        return "the first ones, in the order of the keys"
    _, counts = np.unique(labels[chosen], return_counts=True)
    least, most = int(counts.min()), int(counts.max())
    if len(counts) < len(set[Hashable](labels.tolist())):
        return f"the first image of each of {len(counts)} classes, in the order of the keys"
    number = f"{most} images" if most > 1 else "image"
    number = number if least == most else f"{least} or {most} images"
    return f"the first {number} of each class, in the order of the keys"
