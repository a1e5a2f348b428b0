from __future__ import annotations

import math

import pytest
import torch

from pipeline.objective.image_priors import l2_norm, total_variation
from tests.objective.samples import random

SHAPES = [(1, 1, 2, 2), (2, 3, 4, 5), (3, 4, 7, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_total_variation_is_the_sum_of_four_norms(shape: tuple[int, int, int, int]) -> None:
    images = random(*shape)
    _, channels, height, width = shape
    for image, found in zip(images.double().numpy(), total_variation(images), strict=True):
        expected = 0.0
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            squares = 0.0
            for c in range(channels):
                for y in range(height):
                    for x in range(width):
                        if 0 <= y + down < height and 0 <= x + right < width:
                            squares += (image[c, y, x] - image[c, y + down, x + right]) ** 2
            expected += math.sqrt(squares)
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_total_variation_of_a_lone_bright_pixel() -> None:
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 3.0
    assert total_variation(image).item() == pytest.approx(4 * math.sqrt(2 * 9))


@pytest.mark.parametrize("shape", SHAPES)
def test_l2_norm_is_taken_of_each_image(shape: tuple[int, int, int, int]) -> None:
    images = random(*shape)
    expected = [math.sqrt(sum(v * v for v in image.flatten().tolist())) for image in images]
    assert l2_norm(images).tolist() == pytest.approx(expected, rel=1e-5)
