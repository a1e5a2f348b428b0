from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import invert
from pipeline.inversion.scales import Scales
from pipeline.objective.presets import Objective
from pipeline.teachers.teacher import Teacher


def images_of(height: int = 12, width: int = 10) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_layers_have_half_the_size_each_and_start_as_the_images() -> None:
    images = images_of()
    scales = Scales(images, 3)
    assert [layer.shape[2:] for layer in scales.layers] == [(12, 10), (6, 5), (3, 3)]
    assert torch.equal(scales.images(), images)
    assert torch.equal(Scales(images, 1).images(), images)


def test_layers_end_at_one_pixel() -> None:
    assert [layer.shape[2:] for layer in Scales(images_of(3, 2), 12).layers] == [
        (3, 2),
        (2, 1),
        (1, 1),
    ]


def test_a_small_layer_moves_a_region_as_far_as_a_pixel_moves() -> None:
    scales = Scales(torch.zeros(1, 1, 8, 8), 2)
    optimizer = torch.optim.Adam(scales.layers, lr=0.5)
    scales.images().sum().backward()
    optimizer.step()
    assert torch.allclose(scales.images(), torch.full((1, 1, 8, 8), -1.0), atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_limited_images_are_the_sum(count: int) -> None:
    scales = Scales(images_of(), count)
    with torch.no_grad():
        for layer in scales.layers:
            layer += 1
    wanted = scales.images().detach().clamp(-0.5, 0.5)
    limited = scales.limited(lambda images: images.clamp(-0.5, 0.5))
    assert torch.allclose(limited, wanted, atol=1e-6)
    assert torch.allclose(scales.images(), wanted, atol=1e-6)
    limited.sum().backward()
    assert all(layer.grad is not None and bool((layer.grad > 0).all()) for layer in scales.layers)


def test_an_inversion_with_scales_differs_and_stays_in_range(teacher: Teacher) -> None:
    labels = torch.tensor([0, 1, 2, 0])

    def made(count: int) -> Tensor:
        objective = Objective(flip=False, scales=count, learning_rate=3.0, coarse=0.5)
        with Engine(teacher, objective) as engine:
            result = invert(engine, labels, 0, 6)
        assert bool(result.finite.all())
        return result.pixels

    assert torch.equal(made(3), made(3))
    assert not torch.equal(made(3), made(1))
