from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.distillation import DistillationConfig
from pipeline.distillation.muon import RATE, WEIGHT_DECAY, Muon, hidden_weights, orthogonalise
from pipeline.distillation.step import Training
from pipeline.teachers.preprocessing import Preprocessing
from pipeline.teachers.teacher import Teacher


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.Linear(5, 4),
    )


def test_hidden_weights_exclude_the_last_layer_and_grouped_convolutions() -> None:
    made = network()
    assert [tuple(w.shape) for w in hidden_weights(made)] == [(8, 3, 3, 3), (6, 8, 1, 1), (5, 6)]
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    tied[3].weight = tied[2].weight
    assert [id(w) for w in hidden_weights(tied)] == [id(tied[0].weight)]
    assert hidden_weights(nn.Sequential(nn.Flatten(), nn.Linear(3, 2))) == []
    assert hidden_weights(nn.Sequential(nn.Flatten())) == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_step_is_equally_long_in_every_direction(layout: torch.memory_format) -> None:
    weight = nn.Conv2d(3, 8, 3).to(memory_format=layout).weight
    assert isinstance(weight, nn.Parameter)
    before = weight.detach().clone()
    gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    gradient[0] *= 100  # a direction that plain descent would follow alone
    weight.grad = gradient
    rate = 0.2
    Muon([weight], momentum=0.9).step(rate)
    moved = before * (1 - WEIGHT_DECAY * RATE * rate) - weight.detach()
    lengths = torch.linalg.svdvals(moved.flatten(1)) / (RATE * rate)
    assert lengths.min() > 0.5 and lengths.max() < 1.5  # five Newton-Schulz iterations
    # U V^T of the gradient, in whatever layout.
    u, _, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    assert float((moved.flatten(1) * (u @ v)).sum() / (RATE * rate)) > 0.7 * 8


def test_all_matrices_together_are_updated_as_one_by_one() -> None:
    shapes = [(4, 6), (4, 9), (9, 4), (4, 4), (6, 2), (5, 7), (1, 3)]
    generator = torch.Generator().manual_seed(0)
    # Large, so that the decay of the weights shows.
    weights = [nn.Parameter(10 * torch.randn(shape, generator=generator)) for shape in shapes]
    library = [nn.Parameter(weight.detach().clone()) for weight in weights]
    together, rate = Muon(weights, momentum=0.9), 0.2
    one_by_one = torch.optim.Muon(library, RATE * rate, weight_decay=WEIGHT_DECAY, momentum=0.9)
    for _ in range(3):
        for own, other in zip(weights, library, strict=True):
            own.grad = torch.randn(own.shape, generator=generator)
            other.grad = own.grad.clone()
        together.step(rate)
        one_by_one.step()
    for own, other in zip(weights, library, strict=True):
        assert torch.allclose(own, other, atol=0.15 * RATE * rate)  # of 3 steps, in bfloat16


def test_a_matrix_is_made_orthogonal_alone_or_with_others() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 8), (8, 3), (3, 5), (3, 3), (2, 9)]
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    for matrix, made in zip(matrices, orthogonalise(matrices), strict=True):
        assert made.shape == matrix.shape
        assert torch.allclose(made, orthogonalise([matrix])[0], atol=0.02)
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.5 and values.max() < 1.5
    assert torch.equal(orthogonalise([torch.zeros(2, 3)])[0], torch.zeros(2, 3))


def test_a_weight_without_a_gradient_stays() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    Muon([weight], momentum=0.9).step(0.2)
    assert torch.equal(weight, torch.ones(2, 3))


def training() -> Training:
    one = torch.ones(1, 3, 1, 1)
    teacher = Teacher(
        network().eval().requires_grad_(False), Preprocessing(one / 2, one / 4), (3, 8, 8), 4, ""
    )
    config = DistillationConfig(
        steps=6, batch_size=4, optimizer="muon", compile=False, shift=1, warmup=2
    )
    return Training(teacher, network(), config, seed=0)


def batch(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)


def test_a_student_goes_on_exactly_from_its_state() -> None:
    through, first, second = training(), training(), training()
    for number in range(6):
        through.step(number, batch(number))
    for number in range(3):
        first.step(number, batch(number))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for number in range(3, 6):
        second.step(number, batch(number))
    expected, found = through.student.state_dict(), second.student.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    start = network().state_dict()
    moved = [name for name in start if not torch.equal(start[name], expected[name])]
    assert {name for name in start if name.endswith("weight")} <= set(moved)
