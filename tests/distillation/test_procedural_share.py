from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.distillation import procedural_share
from pipeline.distillation.procedural_share import ProceduralShare
from pipeline.execution.torchrun import Share


def batch(count: int = 24, shape: tuple[int, int, int] = (2, 8, 8)) -> Tensor:
    """Black images: procedural pictures are not black."""
    return torch.zeros(count, *shape, dtype=torch.uint8)


def replaced(images: Tensor) -> Tensor:
    return images.flatten(1).bool().any(1)


def test_the_asked_part_is_replaced_by_pictures_that_never_repeat() -> None:
    pictures, black = ProceduralShare(0.25, seed=5), batch(40, (3, 16, 16))
    steps = [pictures.replace(number, black) for number in range(70)]  # more than one block
    assert all(int(replaced(each).sum()) == 10 for each in steps)
    assert len({tuple(replaced(each).tolist()) for each in steps}) > 60
    new = torch.cat([each[replaced(each)] for each in steps])
    assert len(new.flatten(1).unique(dim=0)) == len(new) == 700
    assert not replaced(black).any()


def test_nothing_is_replaced_at_0_and_everything_at_1() -> None:
    black = batch()
    assert ProceduralShare(0.0, seed=5).replace(0, black) is black
    assert bool(replaced(ProceduralShare(1.0, seed=5).replace(0, black)).all())


def test_a_step_does_not_depend_on_earlier_ones_or_on_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(procedural_share, "MOST_STEPS", 2)
    steps = [ProceduralShare(0.5, seed=5).replace(number, batch()) for number in range(6)]
    ahead = ProceduralShare(0.5, seed=5, ahead=True)
    for number in (0, 1, 2, 3, 4, 5, 1):
        assert torch.equal(ahead.replace(number, batch()), steps[number])
    ahead.close()
    assert not torch.equal(ProceduralShare(0.5, seed=6).replace(0, batch()), steps[0])


@pytest.mark.parametrize("of", [2, 4])
def test_several_processes_see_the_batch_of_one(of: int) -> None:
    pixels = torch.randint(0, 256, (24, 2, 8, 8), dtype=torch.uint8)
    whole = ProceduralShare(0.5, seed=5).replace(3, pixels)
    shares = [Share(index, of) for index in range(of)]
    parts = [ProceduralShare(0.5, 5, share).replace(3, share.take(pixels)) for share in shares]
    assert torch.equal(whole, torch.cat(parts))


def test_large_pictures_are_drawn_for_few_steps_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    draw = procedural_share.procedural_pixels

    def counted(count: int, *others: object) -> Tensor:
        sizes.append(count)
        return draw(count, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(procedural_share, "procedural_pixels", counted)
    monkeypatch.setattr(procedural_share, "BLOCK_BYTES", 3 * 12 * 2 * 8 * 8)
    pictures = ProceduralShare(0.5, seed=5)
    for number in range(7):
        pictures.replace(number, batch())
    assert sizes == [36, 36, 36]
