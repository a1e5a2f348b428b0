from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline.inversion.starts import starting_images
from pipeline.objective.presets import Start


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 20), (4, 5, 3)])
def test_starting_images(shape: tuple[int, int, int]) -> None:
    def start(kind: str) -> Tensor:
        return starting_images(64, shape, kind, torch.Generator().manual_seed(0))

    white, smooth = start("white"), start("low-frequency")
    assert white.shape == smooth.shape == (64, *shape)
    assert white.mean().item() == pytest.approx(0, abs=0.1)
    assert white.std().item() == pytest.approx(1, abs=0.1)

    def roughness(images: Tensor) -> float:
        return float((images.diff(dim=3).std() / images.std()).item())

    assert roughness(smooth) < 0.8 * roughness(white)
    torch.testing.assert_close(start("grey"), 0.1 * smooth)


@pytest.mark.parametrize("kind", get_args(Start))
def test_a_start_is_drawn_on_the_cpu_and_made_on_the_device(kind: str) -> None:
    """The device "meta" stands for a GPU: tensors of it and of the CPU cannot be mixed."""
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    made = starting_images(4, (3, 8, 6), kind, generators[0], "meta")
    assert made.device.type == "meta" and made.shape == (4, 3, 8, 6)
    starting_images(4, (3, 8, 6), kind, generators[1])
    assert torch.equal(*(generator.get_state() for generator in generators))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 20), (4, 1, 3)])
def test_varied_starts_differ_in_kind(shape: tuple[int, int, int]) -> None:
    images = starting_images(200, shape, "varied", torch.Generator().manual_seed(0))
    again = starting_images(200, shape, "varied", torch.Generator().manual_seed(0))
    assert images.shape == (200, *shape) and torch.equal(images, again)
    strength = images.square().flatten(1).mean(1).sqrt()
    assert strength.quantile(0.9) > 2 * strength.quantile(0.1)
    assert 0.5 < strength.mean() < 2
    if min(shape) > 2:
        roughness = images.diff(dim=3).flatten(1).std(1) / strength
        assert roughness.quantile(0.9) > 2 * roughness.quantile(0.1)
        colourful = images.std(1).flatten(1).mean(1) / strength
        assert colourful.quantile(0.9) > 2 * colourful.quantile(0.1)
