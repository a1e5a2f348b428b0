"""The same network gets the same images, whatever range of input it expects."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.distillation import DistillationConfig
from pipeline.distillation.step import Training
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import invert
from pipeline.objective.presets import PRESETS
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONVENTIONS = {
    "inside the network": ((0.0,) * 3, (1.0,) * 3),
    "pixels of 0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
    "-1 to 1": ((0.5,) * 3, (0.5,) * 3),
    "minus 0.5": ((0.5,) * 3, (1.0,) * 3),
}
LABELS = torch.tensor([0, 1, 2, 3] * 3)


class Affine(nn.Module):
    """Turns the input of one convention into that of another."""

    def __init__(self, given: Preprocessing, wanted: Preprocessing) -> None:
        super().__init__()
        self.given, self.wanted = given, wanted

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.double() * self.given.std + self.given.mean
        return ((pixels - self.wanted.mean) / self.wanted.std).float()


def preprocessing(mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing:
    return Preprocessing(*(torch.tensor(row).view(1, -1, 1, 1) for row in (mean, std)))


def teacher_of(norm: type[nn.Module] | None) -> Teacher:
    """A network whose BatchNorm statistics, if any, are those of smooth images."""
    torch.manual_seed(0)
    middle = [norm(6)] if norm is not None else []
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), *middle, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, 4),
    )  # fmt: skip
    network.train()(torch.randn(64, 3, 12, 12))
    network.eval().requires_grad_(False)
    return Teacher(network, preprocessing(MEAN, STD), (3, 12, 12), 4, "0" * 64)


def in_convention(teacher: Teacher, name: str) -> Teacher:
    given = preprocessing(*CONVENTIONS[name])
    network = nn.Sequential(Affine(given, teacher.preprocessing), teacher.network).eval()
    return replace(teacher, network=network, preprocessing=given)


def images_of(teacher: Teacher, preset: str) -> Tensor:
    with Engine(teacher, PRESETS[preset]) as engine:
        return invert(engine, LABELS, seed=3, iterations=30).pixels


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize(
    ("preset", "norm"), [("normalised", nn.BatchNorm2d), ("normalised-medium", nn.BatchNorm2d)]
)
def test_the_same_images_up_to_rounding(name: str, preset: str, norm: type[nn.Module]) -> None:
    teacher = teacher_of(norm)
    plain, other = images_of(teacher, preset), images_of(in_convention(teacher, name), preset)
    differences = (plain.int() - other.int()).abs()
    assert differences.max() <= 2 and differences.float().mean() < 0.05
    assert plain.float().std() > 20  # they are no black or grey images


def test_a_published_preset_keeps_the_units_of_the_teacher() -> None:
    teacher = teacher_of(nn.BatchNorm2d)
    preset = "deepinversion-imagenet"
    plain = images_of(teacher, preset)
    other = images_of(in_convention(teacher, "pixels of 0 to 255"), preset)
    assert (plain.int() - other.int()).abs().float().mean() > 10


def test_without_batchnorm_pixels_of_0_to_255_are_not_black() -> None:
    """1/255 is no measured standard deviation: natural images are assumed."""
    teacher = teacher_of(None)
    other = images_of(in_convention(teacher, "pixels of 0 to 255"), "without-batchnorm")
    assert abs(other.float().mean().item() / 255 - 0.45) < 0.1
    assert other.float().std() > 20


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_student_sees_the_same_adversarial_images(name: str) -> None:
    """The reach, the grey of a cutout and mixing do not depend on the convention."""
    teacher = teacher_of(nn.BatchNorm2d)
    settings = DistillationConfig(adversarial=0.5, cutout=4, mixup=1.0, batch_size=12)
    pixels = torch.randint(
        0, 256, (12, 3, 12, 12), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    losses = []
    for each in (teacher, in_convention(teacher, name)):
        # The student of each convention is the same function of pixels.
        torch.manual_seed(5)
        student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 4))
        known = Affine(each.preprocessing, teacher.preprocessing)
        with Training(each, nn.Sequential(known, student), settings, seed=0) as training:
            losses += [training.step(number, pixels).loss.item() for number in range(3)]
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-3)


@pytest.mark.slow
def test_two_networks_that_differ_in_a_hook_alone_do_not_share_compiled_code() -> None:
    """torch.compile would take the code of the first for the second, which expects other inputs."""
    plain, hooked = teacher_of(nn.BatchNorm2d), teacher_of(nn.BatchNorm2d)
    given = preprocessing(*CONVENTIONS["pixels of 0 to 255"])
    convert = Affine(given, hooked.preprocessing)
    hooked.network.register_forward_pre_hook(lambda module, inputs: convert(inputs[0]))
    curves = []
    for teacher in (plain, replace(hooked, preprocessing=given)):
        with Engine(teacher, PRESETS["normalised"], compiled=True) as engine:
            curves.append(invert(engine, LABELS, seed=3, iterations=1).curve)
    assert curves[1][0] == pytest.approx(curves[0][0], rel=1e-3)
