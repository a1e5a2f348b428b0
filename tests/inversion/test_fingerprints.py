from __future__ import annotations

import torch
from torch import Tensor

from pipeline.inversion.fingerprints import fingerprints


def cosines(pixels: Tensor) -> Tensor:
    """The cosines of all pairs of different images."""
    found = fingerprints(pixels) @ fingerprints(pixels).T
    return found[~torch.eye(len(pixels), dtype=torch.bool)]


def test_fingerprints_of_copies_are_alike() -> None:
    pixels = torch.randint(0, 200, (3, 3, 40, 24), generator=torch.Generator().manual_seed(0))
    pixels = torch.cat([pixels, pixels + 20]).to(torch.uint8)  # brighter, otherwise the same
    found = fingerprints(pixels) @ fingerprints(pixels).T
    assert fingerprints(pixels).shape == (6, 3 * 64)
    assert torch.allclose(found.diagonal(3), torch.ones(3))
    assert float(found[0, 1]) < 0.9
