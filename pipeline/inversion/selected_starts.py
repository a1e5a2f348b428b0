"""Starting images that the teacher selects from many random ones.

With 0 iterations this selection alone makes a dataset: the baseline of Frank and Davis, "What Makes
a Good Dataset for Knowledge Distillation?" (CVPR 2025, arXiv 2411.12817).
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from pipeline.inversion.engine import Engine
from pipeline.inversion.starts import starting_images

CHUNK = 2**18  # pixels that are drawn at once, or more where the labels need more


def selected_starts(engine: Engine, labels: Tensor, seed: int) -> Tensor:
    """Draw ``objective.draws`` starting images for each label, and keep one for each label.

    All images compete for all labels (:func:`select`). They are drawn a few at a time, so that the
    memory need not hold all of them.

    Args:
        engine: Teacher and objective, inside its ``with`` block.
        labels: The intended classes, int64 ``[B]``, on the CPU.
        seed: The seed of the draws.

    Returns:
        Images, float32 ``[B, C, H, W]``, on the teacher's device, in the order of ``labels``.
    """
    teacher, objective, pixels = engine.teacher, engine.objective, engine.space.pixels
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[Tensor, Tensor]] = []  # images, and the teacher's logits of their pixels
    count, (_, height, width) = len(labels), teacher.shape
    for number in _parts(objective.draws, max(1, CHUNK // (count * height * width))):
        drawn = starting_images(
            number * count, teacher.shape, objective.start, generator, teacher.device
        )
        answers = [
            engine.answers(pixels.normalise(pixels.quantise(part))).cpu()
            for part in drawn.split(count)
        ]
        kept.append((drawn, torch.cat(answers)))
        images, logits = (torch.cat(parts) for parts in zip(*kept, strict=True))
        rows = select(logits, labels)
        kept = [(images[rows.to(images.device)], logits[rows])]
    return kept[0][0]


def _parts(total: int, most: int) -> list[int]:
    """``total`` as a sum of numbers of at most ``most``."""
    return [min(most, total - start) for start in range(0, total, most)]


def select(logits: Tensor, labels: Tensor) -> Tensor:
    """Choose one image for each label by the teacher's answers.

    A class first takes the images that the teacher recognises as the class, those of the highest
    probability first. A class with fewer such images than labels then takes the images of the
    highest probability of the class that no class has taken. Of equals the first is taken.

    Args:
        logits: The teacher's logits of all images, ``[N, K]``, N at least B.
        labels: The classes of the images to choose, int64 ``[B]``.

    Returns:
        The rows of the chosen images, all different, int64 ``[B]``, in the order of ``labels``.
    """
    probability, answer = logits.softmax(1), logits.argmax(1)
    wanted = sorted(Counter(labels.tolist()).items())
    free = torch.ones(len(logits), dtype=torch.bool)
    chosen: dict[int, list[int]] = {label: [] for label, _ in wanted}
    for only_answers in (True, False):
        for label, count in wanted:
            missing = count - len(chosen[label])
            allowed = free & (answer == label) if only_answers else free
            scores = torch.where(allowed, probability[:, label], -1.0)
            best = scores.sort(descending=True, stable=True).indices[:missing]
            best = best[allowed[best]]
            free[best] = False
            chosen[label] += best.tolist()
    return torch.tensor([chosen[label].pop(0) for label in labels.tolist()], dtype=torch.int64)
