from __future__ import annotations

import numpy as np
import pytest

from pipeline.consumers.images import CalibrationImages, calibration_images
from pipeline.dataset.dataset import Dataset
from pipeline.errors import UserError
from tests.conftest import MEAN, STD, Params, dataset


def read(params: Params, images: int, seed: int = 0, batch: int = 1) -> CalibrationImages:
    return calibration_images(Dataset(dataset(params)), images, seed=seed, batch=batch)


def stored(params: Params) -> tuple[np.ndarray, np.ndarray]:
    """All pixels and labels of the dataset."""
    pixels, labels = zip(*Dataset(dataset(params)).batches(20), strict=True)
    return pixels[0].numpy(), labels[0].numpy()


def test_the_images_are_normalised_as_the_teacher_sees_them(made: Params) -> None:
    images = read(made, 20, batch=8)
    batches = list(images)
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert len(images) == 3
    assert all(batch.dtype == np.float32 for batch in batches)
    pixels, _ = stored(made)
    expected = (pixels / 255 - MEAN) / STD
    np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-6)


def test_each_iteration_yields_all_images(made: Params) -> None:
    images = read(made, 6)
    first, second = list(images), list(images)
    assert len(first) == 6
    np.testing.assert_array_equal(first, second)


def test_the_subset_is_balanced_and_its_seed_decides_it(made: Params) -> None:
    pixels, labels = stored(made)
    label_of = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    assert len(label_of) == 20
    subsets = {seed: read(made, 6, seed).pixels for seed in range(4)}
    for subset in subsets.values():
        chosen = [label_of[image.tobytes()] for image in subset]
        assert sorted(chosen) == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(subsets[1], read(made, 6, 1).pixels)
    assert len({subset.tobytes() for subset in subsets.values()}) > 1


def test_wrong_values_and_a_changed_shard_are_refused(made: Params) -> None:
    for images, seed, batch in ((0, 0, 1), (6, -1, 1), (6, 0, 0)):
        with pytest.raises(UserError, match="give a whole number"):
            read(made, images, seed, batch)
    with pytest.raises(UserError, match=r"21 images cannot be chosen: name a number from 1 to 20"):
        read(made, 21)
    tar = dataset(made) / "train/000000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(UserError, match=r"train/000000\.tar was changed"):
        read(made, 20)
