from __future__ import annotations

import pytest

from pipeline.inversion.capacity import Capacity


def test_a_size_that_failed_is_not_tried_again_nor_is_a_larger_one() -> None:
    capacity = Capacity()
    assert capacity.may_hold(10**9) and capacity.too_large is None
    capacity.record_failure(8)
    assert capacity.too_large == 8
    assert [capacity.may_hold(images) for images in (7, 8, 9)] == [True, False, False]
    capacity.record_failure(4)
    assert [capacity.may_hold(images) for images in (3, 4, 7)] == [True, False, False]


def test_a_size_that_fitted_before_must_not_fail_later() -> None:
    capacity = Capacity()
    for images in (6, 3):
        capacity.record_success(images)
    for images in (3, 6):
        with pytest.raises(RuntimeError, match=f"held 6 images .* does not hold {images} now"):
            capacity.record_failure(images)
    assert capacity.too_large is None
    capacity.record_failure(7)
    assert capacity.too_large == 7
