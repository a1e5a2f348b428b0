"""The normalisation that a teacher was trained with is found again by its first BatchNorm layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.cli import main
from pipeline.estimation.normalisation import (
    COMMON,
    GIVEN,
    describe_distances,
    natural_images,
    normalisation_distances,
)
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher
from tests.conftest import Params, changed, write_blobs, write_params

SHAPE = (3, 32, 32)


def preprocessing(mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing:
    return Preprocessing(
        *(torch.tensor(values).view(1, -1, 1, 1).expand(1, 3, 1, 1) for values in (mean, std))
    )


def trained_on(name: str, given: str) -> Teacher:
    """A network whose running statistics come from images with the normalisation ``name``."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3, 1, 1, bias=False),
        nn.BatchNorm2d(24, momentum=None),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 4),
    )
    # Other images than those of the comparison: darker, and with harder contrasts.
    pixels = natural_images(SHAPE).float().flip(3)
    pixels = (255 * (pixels / 255) ** 1.3).clamp(0, 255)
    with torch.no_grad():
        network.train()(preprocessing(*COMMON[name]).normalise(pixels))
    return Teacher(network.eval(), preprocessing(*COMMON[given]), SHAPE, 4, "")


PAIRS = ["no normalisation", "0.5 and 0.5", "0.5 and 1", "ImageNet", "pixels of 0 to 255"]


@pytest.mark.parametrize("trained", PAIRS)
@pytest.mark.parametrize("given", PAIRS)
def test_a_wrong_normalisation_is_doubtful_and_the_right_one_is_named(
    trained: str, given: str
) -> None:
    distances = normalisation_distances(trained_on(trained, given))
    text = describe_distances(distances, "procedural")
    assert distances[0].name == GIVEN
    if trained == given:
        assert text.startswith("the given mean and std fit the first BatchNorm layer")
    else:
        assert "doubtful" in text
        best = "ImageNet|CIFAR-10" if trained == "ImageNet" else trained
        assert any(f"fits {name} better" in text for name in best.split("|"))


def test_statistics_that_were_never_trained_say_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 2))
    for each in (network, nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))):
        teacher = Teacher(each.eval(), preprocessing((0.5,), (0.5,)), SHAPE, 2, "")
        assert "not compared" in describe_distances(normalisation_distances(teacher), "real")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 48), (13, 20, 20), (3, 224, 224)])
def test_procedural_images_are_as_bright_as_photographs(shape: tuple[int, int, int]) -> None:
    images = natural_images(shape).float() / 255
    assert images.shape[1:] == shape
    assert images.mean().item() == pytest.approx(0.45, abs=0.02)
    assert images.std().item() == pytest.approx(0.25, abs=0.03)


def test_probe_compares_with_real_images(
    tiny: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_blobs(tmp_path / "real.tar", 30)
    images = ["--seconds", "0.5", "--images", str(tmp_path / "real.tar")]
    right = str(write_params(tiny, tmp_path / "right.yaml"))
    assert main(["probe", "--params", right, *images]) == 0
    assert "normalised the given mean and std fit" in capsys.readouterr().out
    changes = {"teacher.input.mean": [-0.5], "teacher.input.std": [1.0]}
    wrong = str(write_params(changed(tiny, changes), tmp_path / "wrong.yaml"))
    assert main(["probe", "--params", wrong, *images]) == 0
    assert "the given mean and std are doubtful: on real images" in capsys.readouterr().out
    assert main(["probe", "--params", right, "--images", "nowhere.tar"]) == 2
    assert "--images: there is no file nowhere.tar" in capsys.readouterr().err
