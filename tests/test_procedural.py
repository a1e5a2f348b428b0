from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.procedural import (
    LAYERS,
    MASKS,
    Draws,
    blob,
    dead_leaves,
    power_law_field,
    procedural_pictures,
    sine_field,
)

SHAPES = [(1, 8, 8), (3, 32, 20), (3, 7, 33), (5, 1, 3), (1, 1, 1)]


def pictures(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    return procedural_pictures(count, shape, torch.Generator().manual_seed(seed))


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), torch.device("cpu"))


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_follow_from_the_seed_and_can_be_stored(shape: tuple[int, int, int]) -> None:
    made = pictures(40, shape)
    assert made.shape == (40, *shape) and made.dtype == torch.float32
    assert torch.equal(made, pictures(40, shape))
    assert not torch.equal(made, pictures(40, shape, 1))
    pixels = (made * 0.25 + 0.45) * 255
    assert pixels.min() >= -1e-3 and pixels.max() <= 255.001


def test_many_large_pictures_are_made_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    made = dead_leaves

    def counted(count: int, shape: tuple[int, int, int], source: Draws) -> Tensor:
        sizes.append(count)
        return made(count, shape, source)

    monkeypatch.setattr("pipeline.procedural.CHUNK", 3 * 16 * 16)
    monkeypatch.setattr("pipeline.procedural.LAYERS", (counted,))
    assert pictures(7, (1, 16, 16)).shape == (7, 1, 16, 16)
    assert max(sizes) == 3 and sum(sizes) == 2 * 7
    assert pictures(0, (1, 16, 16)).shape == (0, 1, 16, 16)


def test_pictures_differ_in_brightness_contrast_colour_and_coarseness() -> None:
    made = pictures(300, (3, 32, 32)) * 0.25 + 0.45
    brightness, contrast = made.mean((1, 2, 3)), made.std((1, 2, 3))
    assert brightness.quantile(0.9) - brightness.quantile(0.1) > 0.3
    assert contrast.quantile(0.9) > 2 * contrast.quantile(0.1)
    colourful = made.std(1).mean((1, 2)) / contrast
    assert colourful.quantile(0.9) > 2 * colourful.quantile(0.1)
    roughness = made.diff(dim=3).square().mean((1, 2, 3)).sqrt() / contrast
    assert roughness.quantile(0.9) > 2 * roughness.quantile(0.1)
    mirrored = (made - made.flip(3)).abs().amax((1, 2, 3)) < 1e-6
    assert 0.1 < mirrored.float().mean() < 0.3


@pytest.mark.parametrize("kind", [*LAYERS, *MASKS, sine_field, power_law_field])
def test_each_kind_has_values_from_0_to_1(kind: object) -> None:
    assert callable(kind)
    made = kind(30, (3, 20, 24), draws())
    assert made.shape in [(30, 3, 20, 24), (30, 20, 24)]
    assert made.isfinite().all() and made.min() >= -1e-5 and made.max() <= 1.0001


def test_the_spectrum_of_textures_falls_as_a_power() -> None:
    """The mean of the logarithms: their slope is that of the middle power, 1.6, about."""
    fields = power_law_field(400, (1, 64, 64), draws())
    spectrum = torch.fft.rfft2(fields - fields.mean((1, 2), keepdim=True)).abs()
    v, u = torch.fft.fftfreq(64)[:, None], torch.fft.rfftfreq(64)[None]
    frequency = (u.square() + v.square()).sqrt()
    low, high = ((frequency > a) & (frequency < a + 0.02) for a in (0.05, 0.4))
    fall = spectrum[:, low].log().mean() - spectrum[:, high].log().mean()
    assert 1.2 < fall / torch.tensor(0.41 / 0.06).log() < 2.0


def test_leaves_are_flat_with_sharp_borders() -> None:
    """Most neighbours are equal and a few are very different, unlike in a Gaussian field."""
    steps = dead_leaves(100, (1, 64, 64), draws()).diff(dim=3).flatten()
    assert (steps.abs() < 1e-6).float().mean() > 0.3
    kurtosis = steps.pow(4).mean() / steps.square().mean().square()
    assert kurtosis > 6


def test_a_blob_is_a_region_near_the_middle() -> None:
    masks = blob(200, (1, 32, 32), draws())
    assert masks[:, 12:20, 12:20].mean() > 3 * masks[:, :4, :4].mean()
