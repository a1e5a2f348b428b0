from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config.distillation import DistillationConfig
from pipeline.distillation.augmentation import augment, cutmix, cutout, mixup, shift_and_flip
from pipeline.execution.torchrun import WHOLE, Share


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def crops(image: Tensor, shift: int) -> list[Tensor]:
    """Every window of an image whose edges are mirrored in."""
    padded = torch.from_numpy(
        np.pad(image.numpy(), [(0, 0), (shift, shift), (shift, shift)], mode="reflect")
    )
    height, width = image.shape[1:]
    return [
        padded[:, y : y + height, x : x + width]
        for y in range(2 * shift + 1)
        for x in range(2 * shift + 1)
    ]


@pytest.mark.parametrize("share", [WHOLE, Share(1, 2)])
def test_images_are_augmented_on_their_device(share: Share) -> None:
    """Which "meta" stands for: mixed with the CPU's it raises, as a GPU does."""
    images = torch.zeros(4, 3, 8, 6, device="meta")
    config = DistillationConfig(mixup=1.0, cutmix=1.0, cutout=3)
    made = augment(images, config, generator(), share)
    assert made.device.type == "meta" and made.shape == images.shape


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_shift_and_flip_give_a_window_of_each_image(shift: int, flip: bool) -> None:
    images = random(40, 2, 5, 7)
    moved = shift_and_flip(images, shift, flip, generator())
    seen = set()
    for image, result in zip(images, moved, strict=True):
        windows = crops(image, shift)
        if flip:
            windows += [window.flip(2) for window in windows]
        matches = [i for i, window in enumerate(windows) if torch.equal(window, result)]
        assert len(matches) == 1
        seen.add(matches[0])
    choices = (2 * shift + 1) ** 2 * (1 + flip)
    assert len(seen) > 0.5 * min(choices, 40) or choices == 1


def test_a_shift_larger_than_the_image_is_cut_down() -> None:
    assert shift_and_flip(random(3, 1, 2, 3), 9, False, generator()).shape == (3, 1, 2, 3)


def test_mixup_lies_between_two_images_of_the_batch() -> None:
    images = random(8, 2, 4, 4)
    mixed = mixup(images, generator())
    for result, image in zip(mixed, images, strict=True):
        fits = []
        for other in images:
            difference = image - other
            share = ((result - other) * difference).sum() / difference.square().sum().clamp_min(
                1e-9
            )
            between = share * image + (1 - share) * other
            fits.append(torch.allclose(between, result, atol=1e-4) and -1e-4 <= share <= 1.0001)
        assert any(fits)
    assert not torch.allclose(mixed, images)


def test_cutmix_takes_one_box_from_another_image() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 9, 7)
    boxes = set()
    for seed in range(20):
        mixed = cutmix(images, generator(seed))
        changed_pixels = (mixed != images).any(1)
        for index in range(6):
            rows = changed_pixels[index].any(1).nonzero()
            columns = changed_pixels[index].any(0).nonzero()
            if len(rows):
                box = changed_pixels[index][rows.min() : rows.max() + 1][
                    :, columns.min() : columns.max() + 1
                ]
                assert box.all()
                assert len(mixed[index][:, changed_pixels[index]].unique()) == 1
                boxes.add(tuple(box.shape))
        assert sorted(mixed[:, 0, 0, 0].tolist()) == list(range(6))  # a permutation, or none
    assert len(boxes) > 5


@pytest.mark.parametrize("side", [1, 4, 9])
def test_cutout_blanks_a_square_of_each_image(side: int) -> None:
    images = 1 + random(40, 2, 8, 10).abs()
    blank = cutout(images, side, generator()) == 0
    assert torch.equal(blank[:, 0], blank[:, 1])
    places = set()
    for hole in blank[:, 0]:
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert hole[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        assert 1 <= len(rows) <= side and 1 <= len(columns) <= side
        places.add((int(rows.min()), int(columns.min())))
    assert len(places) > 10
    untouched = images.masked_fill(blank, 0.0)
    assert torch.equal(cutout(images, side, generator()), untouched)


@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_a_batch_change_as_the_whole_does(ranks: int) -> None:
    config = DistillationConfig(shift=2, flip=True, mixup=1.0, cutmix=1.0, cutout=3)
    images = random(24, 3, 8, 8)
    shares = [Share(index, ranks) for index in range(ranks)]
    parts = [augment(share.take(images), config, generator(3), share) for share in shares]
    assert torch.equal(torch.cat(parts), augment(images, config, generator(3)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shift": 2, "flip": True, "mixup": 1.0, "cutmix": 1.0},
        {"shift": 0, "flip": False, "mixup": 0.0, "cutmix": 1.0},
    ],
)
def test_augmenting_keeps_the_shape_and_is_deterministic(settings: dict[str, Any]) -> None:
    config, images = DistillationConfig(**settings), random(6, 3, 8, 8)
    before = images.clone()
    first, second = augment(images, config, generator(3)), augment(images, config, generator(3))
    assert first.shape == images.shape and first.dtype == images.dtype
    assert torch.equal(first, second)
    assert torch.equal(images, before)
    assert not torch.equal(first, augment(images, config, generator(4)))


def test_augmenting_by_nothing_changes_nothing() -> None:
    config = DistillationConfig(shift=0, flip=False, mixup=0.0, cutmix=0.0)
    images = random(6, 3, 8, 8)
    assert torch.equal(augment(images, config, generator()), images)


def test_mixing_happens_as_often_as_it_is_asked_for() -> None:
    pictures = random(4, 1, 4, 4)
    for name in ("mixup", "cutmix"):
        config = DistillationConfig(
            **{"shift": 0, "flip": False, "mixup": 0.0, "cutmix": 0.0, name: 0.3}
        )
        mixed = [
            not torch.equal(augment(pictures, config, generator(seed)), pictures)
            for seed in range(300)
        ]
        assert 0.2 < sum(mixed) / 300 < 0.4, name


def test_cutmix_areas_are_uniform() -> None:
    pictures = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 40, 40)
    areas = [
        float((cutmix(pictures, generator(seed)) != pictures).float().mean()) for seed in range(300)
    ]
    assert sum(areas) / 300 == pytest.approx(0.5, abs=0.05)


def test_holes_reach_over_every_edge() -> None:
    hole = cutout(torch.ones(400, 1, 8, 8), 4, generator())[:, 0] == 0
    for away in (hole.any(2), hole.any(1)):
        size = away.sum(1)
        assert bool((away[:, 0] & (size < 4)).any()) and bool((away[:, -1] & (size < 4)).any())


def test_each_image_is_mixed_by_a_weight_of_its_own() -> None:
    pictures = torch.tensor([0.0, 1.0]).repeat(8).view(16, 1, 1, 1)
    mixed = mixup(pictures, generator()).flatten()
    weights = torch.where(pictures.flatten() > 0, mixed, 1 - mixed)
    assert len(weights.unique()) == 16
