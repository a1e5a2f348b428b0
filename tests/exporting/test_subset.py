from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.exporting.subset import choose, rule

LABELS = np.array([2, 0, 1, 2, 0, 1, 2, 0, 1, 2], np.int16)


@pytest.mark.parametrize("images", range(1, 10))
def test_the_classes_differ_by_one_image_at_most(images: int) -> None:
    counts = np.bincount(LABELS[choose(LABELS, images)], minlength=3)
    assert counts.sum() == images
    assert counts.max() - counts.min() <= 1


def test_the_first_images_of_each_class() -> None:
    unsorted = np.array([1, 1, 1, 0, 0, 0], np.int16)
    assert np.flatnonzero(choose(unsorted, 4)).tolist() == [0, 1, 3, 4]
    assert np.flatnonzero(choose(unsorted, 3)).tolist() == [0, 1, 3]
    assert choose(unsorted, None).all()


def test_what_cannot_be_balanced_is_refused() -> None:
    labels = np.array([0] * 5 + [3] * 2, np.int16)
    assert Counter(labels[choose(labels, 4)].tolist()) == {0: 2, 3: 2}
    with pytest.raises(UserError, match=r"class 3 has 2 images, and 3 are needed\. Name at most 4"):
        choose(labels, 6)
    for images in (0, -1, 8):
        with pytest.raises(UserError, match="from 1 to 7"):
            choose(labels, images)


def test_the_choice_in_words() -> None:
    words = {images: rule(LABELS, choose(LABELS, images)) for images in (2, 3, 4, 6, 10)}
    assert words[10] == "all images"
    assert words[6] == "the first 2 images of each class, in the order of the keys"
    assert words[4] == "the first 1 or 2 images of each class, in the order of the keys"
    assert words[3] == "the first image of each class, in the order of the keys"
    assert words[2] == "the first image of each of 2 classes, in the order of the keys"


def test_a_seed_draws_the_images_of_each_class() -> None:
    labels = np.array([0, 1] * 20, np.int16)
    drawn = [choose(labels, 6, seed) for seed in (0, 0, 1)]
    assert all(np.bincount(labels[one]).tolist() == [3, 3] for one in drawn)
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    assert drawn[0].tolist() != choose(labels, 6).tolist()


def test_a_seed_draws_the_classes_with_one_image_more() -> None:
    labels = np.array([0, 1, 2, 3, 4, 5, 5], dtype=np.int16)
    drawn = [np.flatnonzero(choose(labels[:6], 3, seed)).tolist() for seed in range(6)]
    assert len({tuple(each) for each in drawn}) > 1 and all(len(each) == 3 for each in drawn)
    for seed in range(6):  # only class 5 has one image more
        assert choose(labels, 7, seed).all()
