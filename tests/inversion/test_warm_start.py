from __future__ import annotations

import torch

from pipeline.dataset.plan import plan_of
from pipeline.dataset.stream import ordered_batches
from pipeline.inversion.warm_start import Pool, earlier_pool
from pipeline.teachers.preprocessing import Preprocessing
from tests.conftest import Params, changed, dataset, load, make, tree

PREPROCESSING = Preprocessing(torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.25))


def warmed(share: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pixels = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 1, 2, 2) * 40
    pool = Pool(pixels, torch.tensor([0, 0, 0, 0, 0, 1]), share)
    labels = torch.tensor([0] * 40 + [1] * 2 + [2] * 2)
    noise = torch.randn(len(labels), 1, 2, 2, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    return (
        noise,
        PREPROCESSING.normalise(pixels),
        pool.warmed(noise, labels, PREPROCESSING, generator),
    )


def test_images_start_from_those_of_their_class_and_from_noise_where_there_are_none() -> None:
    noise, earlier, starts = warmed(1.0)
    chosen = [[row for row in range(6) if torch.equal(start, earlier[row])] for start in starts]
    assert {row for rows in chosen[:40] for row in rows} == {0, 1, 2, 3, 4}
    assert chosen[40:42] == [[5], [5]]
    assert torch.equal(starts[42:], noise[42:])
    assert not torch.equal(starts, warmed(1.0, seed=1)[2])
    assert torch.equal(starts, warmed(1.0)[2])


def test_a_share_is_mixed_with_noise() -> None:
    noise, earlier, starts = warmed(0.25)
    assert torch.allclose(starts[40:42], 0.75 * noise[40:42] + 0.25 * earlier[5])


def test_a_start_is_mixed_on_the_device_of_the_noise() -> None:
    """The device "meta" stands for a GPU: tensors of it and of the CPU cannot be mixed."""
    pool = Pool(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), 0.5)
    preprocessing = PREPROCESSING.to(torch.device("meta"))
    starts = pool.warmed(
        torch.zeros(2, 1, 2, 2, device="meta"),
        torch.tensor([1, 0]),
        preprocessing,
        torch.Generator(),
    )
    assert starts.device.type == "meta"


def test_adaptive_rounds_go_on_from_earlier_images(tiny: Params) -> None:
    params = changed(tiny, {"adaptive.rounds": 1, "adaptive.warm": 1.0, "synthesis.iterations": 0})
    numbers = make(params)
    config, _ = load(params)
    root, layout = dataset(params), plan_of(config)
    tars = [root / "train" / f"{number:06d}.tar" for number in range(len(layout))]
    seen: dict[int, list[torch.Tensor]] = {}
    for pixels, labels in ordered_batches([tars[n] for n in layout.of_round(0)], 50):
        for image, label in zip(pixels, labels.tolist(), strict=True):
            seen.setdefault(label, []).append(image)
    for pixels, labels in ordered_batches([tars[n] for n in layout.of_round(1)], 50):
        for image, label in zip(pixels, labels.tolist(), strict=True):
            assert any(torch.equal(image, other) for other in seen[label])
    assert numbers == list(range(len(layout)))
    before = tree(root)
    tars[-1].unlink()
    assert make(params) == numbers[-1:]
    assert tree(root) == before
    cold = changed(params, {"adaptive.warm": 0.0})
    assert make(cold) == list(layout.of_round(1))
    assert tree(root) != before


def test_earlier_shards_take_turns(made: Params) -> None:
    for number, turn in ((2, 0), (3, 1), (4, 0)):
        tar = dataset(made) / "train" / f"{turn:06d}.tar"
        ((pixels, labels),) = ordered_batches([tar], 99)
        pool = earlier_pool(dataset(made), number, 2, 0.5)
        assert torch.equal(pool.pixels, pixels) and torch.equal(pool.labels, labels)
