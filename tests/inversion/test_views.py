from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.inversion import invert as invert_module
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import invert
from pipeline.inversion.views import Views, crop, recolour, resize
from pipeline.objective.presets import PRESETS, Objective
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher

LABELS = torch.tensor([0, 1, 2, 0])


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def teacher_of(network: nn.Module, side: int, std: float = 0.3) -> Teacher:
    values = torch.full((1, 2, 1, 1), std)
    preprocessing = Preprocessing(torch.full((1, 2, 1, 1), 0.4), values)
    network.eval().requires_grad_(False)
    return Teacher(network, preprocessing, (2, side, side), 3, "0" * 64)


def flat(side: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(2 * side * side), nn.Linear(2 * side**2, 3))


def test_a_crop_is_a_part_enlarged() -> None:
    images = random(2, 3, 8, 10)
    part = crop(images, 0.0, 1.0, 0.0, smallest=0.5)
    assert part.shape == images.shape
    assert torch.allclose(part, resize(images[:, :, 4:, :5], (8, 10)))
    assert crop(images, 1.0, 0.3, 0.3, smallest=0.5) is images


def test_a_crop_curriculum_goes_from_whole_images_to_small_crops() -> None:
    generator = torch.Generator().manual_seed(0)
    views = Views(Objective(zoom=0.2, zoom_schedule="cosine"), 5, generator)
    shares = [views.smallest(iteration) for iteration in range(5)]
    assert shares == pytest.approx([1.0, 0.8828, 0.6, 0.3172, 0.2], abs=1e-4)
    images = random(1, 3, 8, 8)
    whole = Views(Objective(jitter=0, flip=False, zoom=0.2, zoom_schedule="cosine"), 5, generator)
    assert torch.equal(whole.show(images, 0), images)
    assert not torch.equal(whole.show(images, 4), images)


def test_recolouring_is_of_each_image_and_channel() -> None:
    images, draws = random(2, 3, 4, 4), random(2, 2, 3)
    shown = recolour(images, draws, 0.5)
    scale, offset = torch.exp(draws[0] - 0.5), draws[1] - 0.5
    for index in range(2):
        for channel in range(3):
            expected = images[index, channel] * scale[index, channel] + offset[index, channel]
            assert torch.allclose(shown[index, channel], expected, atol=1e-6)


def test_resizing_down_averages() -> None:
    images = random(1, 1, 4, 4)
    assert resize(images, (2, 2))[0, 0, 0, 0].item() == pytest.approx(
        images[0, 0, :2, :2].mean().item()
    )
    assert resize(images, (4, 4)).shape == images.shape


def test_without_crop_and_colour_views_only_move() -> None:
    generator = torch.Generator().manual_seed(5)
    views = Views(Objective(jitter=2, flip=True), 6, generator)
    images = random(2, 1, 5, 5)
    for iteration in range(6):
        shown = views.show(images, iteration)
        assert torch.equal(shown.flatten(1).sort(1).values, images.flatten(1).sort(1).values)


@pytest.mark.parametrize("change", ["colour", "zoom", "coarse"])
def test_each_of_them_changes_the_images(change: str) -> None:
    plain = Objective(flip=False, jitter=0)
    values = {"colour": 0.5, "zoom": 0.5, "coarse": 0.5}
    other = Objective(flip=False, jitter=0, **{change: values[change]})  # type: ignore[arg-type]
    results = []
    for objective in (plain, other, other):
        with Engine(teacher_of(flat(8), 8), objective) as engine:
            results.append(invert(engine, LABELS, 7, 6).pixels)
    assert not torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


class Watched(nn.Module):
    """Records the sides of the images that it sees. ``fixed`` is the only side that it accepts."""

    def __init__(self, fixed: int | None) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.fixed = fixed
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed is not None and x.shape[2] != self.fixed:
            raise RuntimeError("another size")
        self.seen.append(x.shape[2])
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.mark.parametrize(
    ("side", "fixed", "expected"),
    [
        (96, None, [48] * 3 + [96] * 2),
        (32, None, [16] * 3 + [32] * 2),
        (96, 96, [96] * 5),
        (20, None, [20] * 5),
    ],
)
def test_the_coarse_stage_is_small_where_the_teacher_takes_it(
    side: int, fixed: int | None, expected: list[int]
) -> None:
    network = Watched(fixed)
    told: list[int] = []
    with Engine(teacher_of(network, side), Objective(flip=False, coarse=0.6)) as engine:
        if fixed is None and side >= 32:
            assert engine.takes((side // 2, side // 2))
        network.seen.clear()
        result = invert(engine, LABELS, 7, 5, told.append)
    # The last call is the evaluation of the published pixels.
    assert network.seen == [*expected, side]
    assert result.pixels.shape == (4, 2, side, side)
    assert len(told) == 5
    assert [point["iteration"] for point in result.curve] == [0, 1, 2, 3, 4, 5]


def test_without_batchnorm_the_input_is_matched() -> None:
    objective = Objective(
        classification=0, tv=0, feature=1.0, jitter=0, flip=False, clamp=False, learning_rate=0.1
    )
    with Engine(teacher_of(flat(8), 8), objective) as engine:
        result = invert(engine, LABELS, 7, 60)
    assert result.curve[-1]["feature"] < 0.2 * result.curve[0]["feature"]
    assert abs(result.pixels.float().mean().item() / 255 - 0.4) < 0.05


@pytest.mark.parametrize(("std", "expected"), [(0.3, (0.0, 1.0)), (0.5, (0.1, 0.25))])
def test_what_real_images_look_like_to_a_teacher(std: float, expected: tuple[float, float]) -> None:
    mean, variance = teacher_of(flat(4), 4, std).preprocessing.expected()
    assert mean.tolist() == pytest.approx([expected[0]] * 2)
    assert variance.tolist() == pytest.approx([expected[1]] * 2)


def test_presets_without_batchnorm_use_every_prior() -> None:
    for name in ("without-batchnorm", "without-batchnorm-large"):
        preset = PRESETS[name]
        assert preset.colour > 0 and preset.zoom < 1 and preset.coarse > 0
    for name in ("normalised", "deepinversion-cifar10"):
        preset = PRESETS[name]
        assert (preset.colour, preset.zoom, preset.coarse) == (0, 1, 0)


def test_large_images_are_seen_in_crops_and_other_colours_and_have_several_scales() -> None:
    large = PRESETS["normalised-large"]
    assert large.scales > 1 and large.zoom < 0.5 and large.colour > 0
    others = [name for name in PRESETS if name != "normalised-large"]
    assert all(PRESETS[name].scales == 1 for name in others)


def test_each_stage_has_a_schedule_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def rate(objective: Objective, iteration: int, iterations: int) -> float:
        asked.append((iteration, iterations))
        return 0.1

    monkeypatch.setattr(invert_module, "learning_rate", rate)
    with Engine(teacher_of(flat(8), 8), Objective(coarse=0.6)) as engine:
        invert(engine, LABELS, 7, 5)
    assert asked == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]


def test_a_flip_is_left_to_right() -> None:
    views = Views(Objective(jitter=0, flip=True), 20, torch.Generator().manual_seed(0))
    picture = torch.arange(12.0).view(1, 1, 3, 4)
    shown = [views.show(picture, iteration) for iteration in range(20)]
    flipped = [torch.equal(view, picture.flip(3)) for view in shown]
    assert 0 < sum(flipped) < 20
    assert all(f or torch.equal(view, picture) for f, view in zip(flipped, shown, strict=True))
