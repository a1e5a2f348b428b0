from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.cifar10 import resnet
from pipeline.config.distillation import DistillationConfig
from pipeline.distillation import step
from pipeline.distillation.feature_maps import FeatureMaps, Imitation
from pipeline.distillation.optimizers import CONNECTOR_RATE
from pipeline.distillation.step import Training
from pipeline.errors import UserError
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher

SHAPE = (3, 32, 32)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def teacher() -> Teacher:
    torch.manual_seed(0)
    one = torch.ones(1, 3, 1, 1)
    network = resnet(1).eval().requires_grad_(False)
    return Teacher(network, Preprocessing(one * 0.4, one * 0.3), SHAPE, 10, "")


def slim() -> nn.Module:
    """Maps of 32 and of 8 pixels a side, with other numbers of channels than the ResNet."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(5, 64, 3, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def test_the_last_and_outermost_map_of_each_size_counts() -> None:
    network = resnet(2).eval()
    maps = FeatureMaps(network, images())
    assert maps.channels == {(32, 32): 16, (16, 16): 32, (8, 8): 64}
    with maps:
        logits = network(images(3))
        seen = maps.take()
    assert maps.take() == {}
    assert torch.equal(network.linear(seen[8, 8].mean((2, 3))), logits)
    assert torch.equal(network.layer3(network.layer2(seen[32, 32])), seen[8, 8])
    network(images())
    assert maps.take() == {}  # the hooks ended with the block


def test_the_loss_is_the_relative_error_of_each_common_size() -> None:
    ours, theirs = slim(), teacher().network
    student, taught = FeatureMaps(ours, images()), FeatureMaps(theirs, images())
    imitation = Imitation(taught, student)
    assert imitation.sizes == [(32, 32), (8, 8)]
    assert isinstance(imitation.connectors[0], nn.Conv2d)
    assert isinstance(imitation.connectors[1], nn.Identity)
    with student, taught:
        ours(images(3)), theirs(images(3))
        found = imitation()
        ours(images(3)), theirs(images(3))
        mine, other = student.take(), taught.take()
    expected = []
    for size, connect in zip(imitation.sizes, imitation.connectors, strict=True):
        for a, b in zip(connect(mine[size]), other[size], strict=True):
            expected.append((F.mse_loss(a, b) / b.square().mean()).item())
    assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_networks_without_a_common_size_are_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(UserError, match="no feature map"):
        Imitation(FeatureMaps(teacher().network, images()), FeatureMaps(flat, images()))


@pytest.mark.parametrize("student", [lambda: resnet(1), slim])
def test_a_student_comes_nearer_to_the_teachers_maps(student: object) -> None:
    config = DistillationConfig(
        steps=30, batch_size=8, imitation=50.0, learning_rate=0.2, precision="float32",
        compile=False, mixup=0, cutmix=0, warmup=3,
    )  # fmt: skip
    torch.manual_seed(1)
    training = Training(teacher(), student(), config, seed=0)  # type: ignore[operator]
    pixels = torch.randint(0, 256, (8, *SHAPE), dtype=torch.uint8)
    with training:
        losses = [training.step(number, pixels).loss.item() for number in range(30)]
    assert losses[-1] < 0.6 * losses[0]


def test_connectors_are_trained_and_kept() -> None:
    config = DistillationConfig(
        steps=4, batch_size=4, imitation=1.0, precision="float32", compile=False
    )

    def training() -> Training:
        torch.manual_seed(1)
        return Training(teacher(), slim(), config, seed=0)

    pixels = torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8)
    whole, half = training(), training()
    before = copy.deepcopy(half.state_dict()["connectors"])
    with half:
        half.step(0, pixels), half.step(1, pixels)
    rest = training()
    rest.load_state_dict(half.state_dict())
    with rest:
        rest.step(2, pixels)
    with whole:
        for number in range(3):
            whole.step(number, pixels)
    ours, theirs = whole.state_dict()["connectors"], rest.state_dict()["connectors"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(ours["connectors.0.weight"], before["connectors.0.weight"])


def test_connectors_move_as_far_whatever_the_weight() -> None:
    """By Adam: else a large one makes them diverge, and with them the student."""

    def moved(imitation: float) -> Tensor:
        config = DistillationConfig(
            steps=4, batch_size=4, imitation=imitation, precision="float32", compile=False,
            weight_decay=0,
        )  # fmt: skip
        torch.manual_seed(1)
        training = Training(teacher(), slim(), config, seed=0)
        before = training.state_dict()["connectors"]["connectors.0.weight"].clone()
        with training:
            training.step(0, torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8))
        return training.state_dict()["connectors"]["connectors.0.weight"] - before

    steps = [moved(weight) for weight in (1.0, 100.0)]
    torch.testing.assert_close(*steps, rtol=1e-3, atol=1e-7)
    assert steps[0].abs().max() > 1e-4


def test_connecting_leaves_the_student_alone_and_one_pixel_is_no_map() -> None:
    student = nn.Sequential(
        nn.Conv2d(3, 5, 3, 1, 1), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 10),
    )  # fmt: skip
    before = copy.deepcopy(student.state_dict())
    config = DistillationConfig(
        steps=4, batch_size=4, imitation=1.0, compile=False, precision="float32"
    )
    made = Training(teacher(), student, config, seed=0)
    assert all(
        torch.equal(before[name], value) for name, value in made.student.state_dict().items()
    )
    assert FeatureMaps(student, images()).channels == {(32, 32): 5}


def test_connectors_follow_the_schedule() -> None:
    config = DistillationConfig(
        steps=10, warmup=5, batch_size=4, imitation=1.0, compile=False, precision="float32"
    )
    made = Training(teacher(), slim(), config, seed=0)
    with made:
        made.step(0, torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8))
    (group,) = made.state_dict()["adam"]["param_groups"]
    assert group["lr"] == pytest.approx(CONNECTOR_RATE / 5)


def test_gradients_of_all_that_learns_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(step, "average_gradients", seen.extend)
    config = DistillationConfig(
        steps=4, batch_size=4, imitation=1.0, compile=False, precision="float32"
    )
    made = Training(teacher(), slim(), config, seed=0)
    with made:
        made.step(0, torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8))
    assert made._imitation is not None
    learning = [*made.student.parameters(), *made._imitation.parameters()]
    assert {id(weight) for weight in seen} == {id(weight) for weight in learning}
