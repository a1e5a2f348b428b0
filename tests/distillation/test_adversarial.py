from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.distillation import DistillationConfig
from pipeline.distillation.adversarial import draw_distances, perturb
from pipeline.distillation.loss import compare, distillation_loss
from pipeline.distillation.step import Training
from pipeline.distillation.train_student import distill
from pipeline.execution.torchrun import Share
from pipeline.stages.final_students import student_jobs
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher
from tests.conftest import Params, changed, load
from tests.distillation.test_job import generator, random


def sizes(change: Tensor) -> Tensor:
    return change.square().mean((1, 2, 3)).sqrt()


def test_each_image_moves_by_its_distance() -> None:
    images, gradient = random(64, 3, 8, 8), 1e-9 * random(64, 3, 8, 8, seed=1)
    distances = draw_distances(64, 0.5, generator())
    assert 0 <= distances.min() < 0.1 and 0.4 < distances.max() <= 0.5
    found = sizes(perturb(images, gradient, distances) - images)
    assert torch.allclose(found, distances.flatten(), atol=1e-5)


def test_nothing_is_drawn_for_a_reach_of_zero() -> None:
    untouched = generator()
    assert not draw_distances(8, 0.0, untouched).any()
    assert torch.equal(untouched.get_state(), generator().get_state())


def test_the_change_is_along_the_gradient_and_smooth() -> None:
    images, gradient = torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)
    gradient[0, 0, 4, 4] = -1
    change = perturb(images, gradient, torch.ones(1, 1, 1, 1))[0, 0]
    outside = torch.ones(9, 9, dtype=torch.bool)
    outside[2:7, 2:7] = False  # two blurs of 3x3 reach two pixels far
    assert (change[outside] == 0).all()
    assert (change[~outside] < 0).all()
    assert change.argmin() == 4 * 9 + 4


def test_an_image_without_a_gradient_stays() -> None:
    images = random(2, 3, 8, 8)
    gradient = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    found = perturb(images, gradient, torch.ones(2, 1, 1, 1))
    assert torch.equal(found[0], images[0])
    assert not torch.equal(found[1], images[1])


@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_a_batch_draw_the_distances_of_the_batch(ranks: int) -> None:
    parts = [
        draw_distances(12 // ranks, 0.5, generator(), Share(index, ranks)) for index in range(ranks)
    ]
    assert torch.equal(torch.cat(parts), draw_distances(12, 0.5, generator()))


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        )


def started(adversarial: float) -> Training:
    one = torch.ones(1, 3, 1, 1)
    frozen = network(1).eval().requires_grad_(False)
    teacher = Teacher(frozen, Preprocessing(one / 2, one / 4), (3, 8, 8), 4, "")
    config = DistillationConfig(
        steps=6,
        batch_size=8,
        compile=False,
        precision="float32",
        learning_rate=1e-4,
        adversarial=adversarial,
    )
    return Training(teacher, network(2), config, seed=0)


def batch(number: int) -> Tensor:
    return torch.randint(0, 256, (8, 3, 8, 8), generator=generator(number), dtype=torch.uint8)


def shown_by(training: Training, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What both networks are shown from here on."""
    shown: list[Tensor] = []

    def recording(*arguments: object) -> object:
        assert isinstance(arguments[2], Tensor)
        shown.append(arguments[2].detach().clone())
        return compare(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training._gradient, "_compare", recording)
    return shown


def test_every_fourth_image_is_made_harder(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, hard = started(0.0), started(0.3)
    usual, shown = shown_by(plain, monkeypatch), shown_by(hard, monkeypatch)
    easy, step = plain.step(0, batch(0)), hard.step(0, batch(0))
    (usual_images,), (chosen, images) = usual, shown
    assert torch.equal(chosen, usual_images[::4])
    assert torch.equal(images[1::4], usual_images[1::4])
    assert 0 < sizes(images[::4] - chosen).max() <= 0.3 + 1e-5
    assert step.loss > easy.loss


def test_the_gradient_is_that_of_both_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    training = started(0.3)
    shown = shown_by(training, monkeypatch)
    student, teacher = network(2).train(), training._teacher.network
    training.step(0, batch(0))
    images = shown[0].clone().requires_grad_()
    distillation_loss(student(images), teacher(images), 8.0).backward()
    assert images.grad is not None
    expected = perturb(shown[0], images.grad, torch.ones(2, 1, 1, 1)) - shown[0]
    change = shown[1][::4] - shown[0]
    assert torch.cosine_similarity(change.flatten(1), expected.flatten(1)).min() > 0.999
    one_sided = shown[0].clone().requires_grad_()
    with torch.no_grad():
        target = teacher(one_sided)
    distillation_loss(student(one_sided), target, 8.0).backward()
    assert one_sided.grad is not None
    other = perturb(shown[0], one_sided.grad, torch.ones(2, 1, 1, 1)) - shown[0]
    assert torch.cosine_similarity(change.flatten(1), other.flatten(1)).min() < 0.99


def test_the_student_learns_from_the_moved_images_only() -> None:
    """The first pass leaves no gradient behind, and all weights learn."""
    training = started(0.3)
    training.step(0, batch(0))
    weights = list(training.student.parameters())
    assert all(weight.requires_grad and weight.grad is not None for weight in weights)
    assert all(weight.grad is None for weight in training._teacher.network.parameters())


def test_a_killed_student_goes_on_to_the_same_bytes(
    made: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"distillation.adversarial": 0.5, "distillation.checkpoint_every": 1}
    (job,) = student_jobs(*load(changed(made, settings)))
    distill(job, "cpu", lambda images: None)
    expected = job.output.read_bytes()
    job.record.unlink()
    job.output.unlink()
    real = Training.step

    def failing(training: Training, number: int, pixels: Tensor) -> object:
        if number == 3:
            raise KeyboardInterrupt
        return real(training, number, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            distill(job, "cpu", lambda images: None)
    told: list[float] = []
    distill(job, "cpu", told.append)
    assert told[0] == 3 * job.training.batch_size
    assert job.output.read_bytes() == expected


def test_a_batch_has_two_adversarial_images() -> None:
    with pytest.raises(ValueError, match="set batch_size to 4 or more"):
        DistillationConfig(adversarial=0.3, batch_size=3)


def test_two_of_four_images_are_made_harder(monkeypatch: pytest.MonkeyPatch) -> None:
    training = started(0.3)
    shown = shown_by(training, monkeypatch)
    training.step(0, batch(0)[:4])
    assert len(shown[0]) == 2 and len(shown[1]) == 4
    assert (sizes(shown[1][::2] - shown[0]) > 0).all()
