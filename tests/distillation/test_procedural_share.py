from __future__ import annotations

import pytest
import torch

from pipeline.distillation.procedural_share import replace_images
from pipeline.execution.torchrun import Share


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_about_the_asked_share_is_replaced_by_pictures_that_differ() -> None:
    black = torch.zeros(400, 3, 16, 16, dtype=torch.uint8)
    batch = replace_images(black, 0.25, generator())
    replaced = batch.flatten(1).any(1)
    assert 70 < int(replaced.sum()) < 130
    assert len(batch[replaced].flatten(1).unique(dim=0)) == int(replaced.sum())
    assert not black.any()


def test_nothing_is_replaced_at_0_and_everything_at_1() -> None:
    black = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    assert replace_images(black, 0.0, generator()) is black
    assert bool(replace_images(black, 1.0, generator()).flatten(1).any(1).all())


@pytest.mark.parametrize("of", [2, 4])
def test_several_processes_see_the_batch_of_one(of: int) -> None:
    pixels = torch.randint(0, 256, (24, 2, 8, 8), dtype=torch.uint8)
    whole = replace_images(pixels, 0.5, generator())
    shares = [Share(index, of) for index in range(of)]
    parts = [replace_images(share.take(pixels), 0.5, generator(), share) for share in shares]
    assert torch.equal(whole, torch.cat(parts))
