from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.inversion.engine import Engine
from pipeline.objective.presets import Objective
from pipeline.teachers.teacher import Teacher
from tests.conftest import Params, load


def test_bfloat16_leaves_the_teacher_as_it_was(teacher: Teacher) -> None:
    """Otherwise the last bits of a student would depend on the earlier work of its process."""
    wide = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    teacher = replace(teacher, network=wide.eval().requires_grad_(False))
    before = [parameter.stride() for parameter in wide.parameters()]
    engine = Engine(teacher, Objective(), "bfloat16")
    assert [parameter.stride() for parameter in wide.parameters()] == before
    assert engine.teacher.network[1].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index, union-attr, operator]


@pytest.mark.parametrize("counts", [(3, 2), (2, 3)])
def test_a_size_that_does_not_compile_is_eager_whatever_came_before(
    tiny: Params,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    counts: tuple[int, int],
) -> None:
    """Batches of 2 do not compile. The stand-in for a compiled step doubles the objective."""
    _, teacher = load(tiny)

    def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def run(images: Tensor, *others: Tensor) -> Any:
            if len(images) == 2:
                raise AssertionError
            total, means = function(images, *others)
            return 2 * total, 2 * means

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    labels, factors = torch.tensor([0, 1, 2]), torch.ones(3, 2)
    batches = [
        (torch.randn(count, 1, 8, 8), labels[:count], factors[:count]) for count in counts * 2
    ]
    with Engine(teacher, Objective()) as engine:
        eager = [engine.step(*batch) for batch in batches]
    with Engine(teacher, Objective(), compiled=True) as engine:
        found = [engine.step(*batch) for batch in batches]
    for (images, *_), values, expected in zip(batches, found, eager, strict=True):
        for value, other in zip(values, expected, strict=True):
            assert torch.equal(value, other if len(images) == 2 else 2 * other)
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile failed for the teacher, so its steps run uncompiled and slower: "
        "AssertionError"
    ]


def test_a_full_disk_is_no_reason_to_invert_uncompiled(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard would silently have other bytes."""

    def full(*arguments: Any) -> Any:
        raise RuntimeError(
            "CppCompileError: C++ compile error\n"
            "g++: internal compiler error: File size limit exceeded signal terminated program"
        )

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: full)
    with (
        pytest.raises(OSError, match="File too large: compiling needs some"),
        Engine(teacher, Objective(), compiled=True) as engine,
    ):
        engine.step(torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2]), torch.ones(3, 2))
